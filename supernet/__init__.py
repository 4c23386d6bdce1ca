"""What is trained: a weight-sharing supernet over architectures and weight formats."""
