"""The upstream that lies: every failure of a vendor, a network and a client, one test id each."""
