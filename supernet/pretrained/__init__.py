"""Pretrained Llamas as a supernet's first weights: a checkpoint folder of Hugging Face, or a file of llama2.c."""
