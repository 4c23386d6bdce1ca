"""What is chosen and shipped: evolution over genomes, measured on the runtime that will run them."""
