"""Text and pictures to ids and pixels: tokenizer, chat template, images."""
