"""Scripts that parse, call and print; the logic is in pneumonia_hf."""
