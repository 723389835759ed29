"""TITAN_PROTO 2, the language of master, workers and clients. Pure: no sockets, no asyncio, no clock.

`opcodes` is the list of what can be said and by whom, `messages` what each body means, `connection` the state
machine between bytes and messages, `handshake` how both sides prove that they know the token.
"""
