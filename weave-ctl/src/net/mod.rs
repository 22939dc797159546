//! Links, addresses, routes and namespaces through netlink.
