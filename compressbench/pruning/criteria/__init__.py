"""Importance scores; one file for each conf/criterion/*.yaml."""
