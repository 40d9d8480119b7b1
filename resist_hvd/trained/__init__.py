"""Using what was trained: reading exported models, evaluating them, classifying images."""
