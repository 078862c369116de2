"""Every name of the standard library's socketserver, driven by an event loop."""
