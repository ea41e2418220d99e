"""Every way in: whatever names a set of labelled images becomes one `ImageSource`."""
