"""`python -m compat`: an unchanged program on compat, and its end at SIGTERM."""
