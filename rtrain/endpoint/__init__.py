"""Versions of a model behind one address: shares of the requests, canaries that go on or back by themselves."""
