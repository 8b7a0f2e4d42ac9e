//! The kernel beyond plain sockets: namespaces, links, redirect rules, original destination, marks.
