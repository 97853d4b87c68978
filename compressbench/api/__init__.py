"""The library as a Python program or a notebook uses it: `compress`, `load`, `front`."""
