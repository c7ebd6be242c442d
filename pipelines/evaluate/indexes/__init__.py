"""Vector stores that `smec evaluate --index` measures, one module a store; `store.py` says what each must give."""
