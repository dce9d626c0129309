//! Exposed memory: our own by its key, and that of peers as it is reached from here.
