"""Parts of tools/bench_tokenizers.py: reference tokenizers without learning, errors in physical units, the picture."""
