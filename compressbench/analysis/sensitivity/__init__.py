"""Estimates of what fewer bits cost a layer; one file for each conf/sensitivity/*.yaml."""
