//! Section 13: source, remote and destination addresses, ports.

use crate::support::check;

#[test]
fn section_13_remote_and_source_addresses() {
    let through = "{ip: 10.0.0.5, headers: {x-forwarded-for: ['198.51.100.7, 203.0.113.9']}}";
    check(&[
        ("from: [{source: {remoteIpBlocks: [203.0.113.9]}}]", through, true),
        ("from: [{source: {remoteIpBlocks: [198.51.100.7]}}]", through, false),
        ("from: [{source: {ipBlocks: [10.0.0.5]}}]", through, true),
        ("when: [{key: remote.ip, values: [203.0.113.0/24]}]", through, true),
        ("when: [{key: source.ip, values: [203.0.113.0/24]}]", through, false),
        ("from: [{source: {remoteIpBlocks: [10.0.0.5]}}]", "{ip: 10.0.0.5}", true),
        (
            "from: [{source: {remoteIpBlocks: [203.0.113.9]}}]",
            "{ip: 10.0.0.5, headers: {x-forwarded-for: [198.51.100.7, 203.0.113.9]}}",
            true,
        ),
        ("from: [{source: {notRemoteIpBlocks: [203.0.113.9]}}]", through, false),
        ("from: [{source: {namespaces: [a]}}, {source: {remoteIpBlocks: [203.0.113.9]}}]", through, true),
        (
            "from: [{source: {namespaces: [a], remoteIpBlocks: [203.0.113.9]}}, {source: {ipBlocks: [10.9.0.0/16]}}]",
            through,
            false,
        ),
    ]);
}

#[test]
fn section_13_blocks() {
    check(&[
        ("from: [{source: {ipBlocks: [10.1.2.3/8]}}]", "{ip: 10.77.0.1}", true),
        ("from: [{source: {ipBlocks: [0.0.0.0/0]}}]", "{ip: 203.0.113.1}", true),
        ("from: [{source: {ipBlocks: [0.0.0.0/0]}}]", "{ip: '2001:db8::1'}", false),
        ("from: [{source: {ipBlocks: [1.2.3.4]}}]", "{ip: '::ffff:1.2.3.4'}", false),
        ("from: [{source: {ipBlocks: ['2001:db8::/32']}}]", "{ip: '2001:db8::1'}", true),
        ("from: [{source: {ipBlocks: ['2001:db8::1']}}]", "{ip: '2001:db8::2'}", false),
    ]);
}

#[test]
fn section_13_ports_are_the_workloads() {
    check(&[
        ("to: [{operation: {ports: ['80']}}]", "{port: 8080}", false),
        ("to: [{operation: {ports: ['8080']}}]", "{port: 8080}", true),
        ("to: [{operation: {notPorts: ['8080']}}]", "{port: 8080}", false),
        ("when: [{key: destination.port, values: ['0080']}]", "{port: 80}", true),
    ]);
}
