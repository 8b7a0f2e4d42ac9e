//! Questions to a running proxy: which Pod is meant, and its admin port.
