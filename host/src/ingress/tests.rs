//! The engine on real sockets, with guests that are closures.
