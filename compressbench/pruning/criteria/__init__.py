"""Pruning criteria (importance scores); one file for each conf/criterion/*.yaml."""
