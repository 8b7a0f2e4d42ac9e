//! A mesh on one Linux machine: supervisor of Pods as local processes, cluster DNS, Services.

#![forbid(unsafe_code)]
