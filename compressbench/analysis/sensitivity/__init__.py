"""Estimates of the loss caused by quantizing a layer; one file for each conf/sensitivity/*.yaml."""
