"""hosted: a handler class written for socketserver, as a handler of asyncserver."""
