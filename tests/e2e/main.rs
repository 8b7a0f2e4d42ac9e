//! End-to-end tests: the real binary, real Pods, real packets.
//!
//! One mesh with the demo shop serves all scenarios, one after the other; each leaves it as it
//! found it. They need root and network namespaces. In CI they fail where they cannot run;
//! elsewhere they say loudly that they were skipped.

#![forbid(unsafe_code)]

mod bad_yaml;
mod clock;
mod control_plane_away;
mod dashboard;
mod document;
mod dual_stack;
mod envoy;
mod federation;
mod guide;
mod identity;
mod isolation;
mod lifecycle;
mod mesh;
mod outside;
mod pcap;
mod policy;
mod policy_change;
mod protocols;
mod rotation;
mod shop;
mod soak;
mod wire;
mod workloads;

use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use mesh::Mesh;

/// A scenario on the shared mesh.
type Scenario = (&'static str, fn(&Mesh) -> Result<()>);

const SCENARIOS: &[Scenario] = &[
    ("every_pair_of_the_shop_is_as_the_policies_say", shop::every_pair),
    ("refusals_say_what_refused_them", shop::refusals_explain_themselves),
    ("the_table_is_as_expected", shop::table_is_as_expected),
    ("only_tls_records_travel_between_sidecars", wire::only_tls_between_sidecars),
    ("openssl_sees_the_spiffe_identity_over_tls13", wire::openssl_sees_the_identity),
    ("plaintext_is_cut_off_under_strict_and_served_under_permissive", wire::plaintext_by_mode),
    ("the_metrics_port_answers_plaintext", wire::metrics_port_in_plaintext),
    ("certificates_of_others_are_refused", identity::foreign_certificates_are_refused),
    ("a_token_of_another_account_gets_no_certificate", identity::foreign_token_gets_nothing),
    ("a_client_generated_from_the_proto_gets_its_own_identity_and_no_other", identity::generated_client),
    ("applications_get_identities_by_the_workload_api", identity::workload_api),
    ("who_is_revoked_is_refused_within_seconds", identity::revoked),
    ("a_policy_acts_on_open_connections_within_a_second", policy_change::acts_on_open_connections),
    ("peer_authentication_changes_are_in_force_at_once", policy_change::strict_and_back),
    ("keys_of_tokens_are_replaced_at_once", policy::keys_are_replaced),
    ("a_policy_for_gateways_is_reported_and_not_applied", policy::targets_are_reported),
    ("the_meshs_configuration_is_in_force_at_once", policy::configuration_is_in_force_at_once),
    ("offline_answers_are_the_meshs", policy::offline_answers_are_the_meshs),
    ("real_clients_and_servers_of_every_protocol_understand_each_other", protocols::real_clients),
    ("envoy_is_a_sidecar_like_any_other_on_both_sides", envoy::both_ways),
    ("the_outside_is_reached_as_the_tables_say", outside::all),
    ("workloads_of_every_kind_begin_and_end_beside_a_sidecar", workloads::all),
    ("ipv6_has_the_roads_names_and_rules_of_ipv4", dual_stack::all),
    ("a_pod_cannot_reach_secrets_or_the_sidecar", isolation::secrets_and_sidecar),
    ("a_pod_cannot_become_the_sidecars_user", isolation::sidecar_user),
    ("a_pod_has_no_rights_on_the_api", isolation::api_rights),
    ("the_dashboard_tells_the_shops_story", dashboard::tells_the_shops_story),
    ("the_dashboard_runs_as_nobody", dashboard::runs_as_nobody),
    ("the_dashboard_comes_back_at_its_address", dashboard::comes_back_at_its_address),
    ("bad_yaml_changes_nothing_and_says_why", bad_yaml::ten_kinds_through_apply),
    ("bad_yaml_through_kubectl_names_the_field", bad_yaml::through_kubectl),
    ("traffic_flows_while_the_control_plane_is_dead", control_plane_away::killed),
    ("a_sidecar_restarts_while_the_control_plane_is_away", control_plane_away::sidecar_restarts),
    ("a_rollout_replaces_pods_without_a_failed_request", lifecycle::rollout),
];

/// A scenario with a mesh of its own, or several.
type Own = (&'static str, fn() -> Result<()>);

const OWN_MESH: &[Own] = &[
    ("up_check_ends_with_everything_as_expected", lifecycle::up_check),
    ("up_refuses_bad_files_before_anything_starts", bad_yaml::through_up),
    ("a_mesh_starts_again_from_another_place", lifecycle::starts_again_from_another_place),
    ("the_guide_manifests_apply_both_ways", guide::manifests_apply_both_ways),
    ("an_api_outside_the_mesh_gets_mutual_tls", guide::external_api),
    ("a_namespace_migrates_to_strict_without_a_failed_call", guide::migration),
    ("the_guide_document_is_true", guide::the_document_is_true),
    ("the_traffic_document_is_true", outside::the_document_is_true),
    ("the_policy_document_is_true", policy::the_document_is_true),
    ("the_identity_document_is_true", rotation::the_document_is_true),
    ("nothing_is_lost_while_everything_changes", soak::churn),
    ("roots_and_intermediates_rotate_under_load", rotation::under_load),
    ("two_meshes_believe_each_other_through_a_rotation", federation::two_meshes),
    ("clocks_jump_and_the_mesh_recovers_by_itself", clock::jumps),
    ("nothing_is_left_behind_even_after_a_crash", lifecycle::nothing_left_behind),
];

fn main() -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    if let Some(reason) = mesh::cannot_run() {
        if std::env::var_os("CI").is_some() {
            eprintln!("end-to-end tests cannot run in CI: {reason}");
            return ExitCode::FAILURE;
        }
        eprintln!("\n*** SKIPPED: end-to-end tests: {reason} ***\n");
        return ExitCode::SUCCESS;
    }
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let mut tally = Tally::default();
    for (name, scenario) in OWN_MESH.iter().filter(|(name, _)| is_wanted(name)) {
        tally.run(name, scenario);
    }
    let shared: Vec<&Scenario> = SCENARIOS.iter().filter(|(name, _)| is_wanted(name)).collect();
    if !shared.is_empty() {
        match Mesh::start(&["--demo"]) {
            Ok(mesh) => {
                for (name, scenario) in shared {
                    let before = tally.failed;
                    tally.run(name, || scenario(&mesh));
                    if tally.failed > before {
                        mesh.print_diagnosis();
                    }
                }
            }
            Err(error) => tally.run("the_shared_mesh_starts", || Err(error)),
        }
    }
    println!("\n{} passed, {} failed", tally.passed, tally.failed);
    if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

impl Tally {
    fn run(&mut self, name: &str, scenario: impl FnOnce() -> Result<()>) {
        let started = Instant::now();
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(scenario));
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(Ok(())) => {
                self.passed += 1;
                println!("ok      {name} ({seconds:.1} s)");
            }
            Ok(Err(error)) => {
                self.failed += 1;
                println!("FAILED  {name} ({seconds:.1} s)\n{error:#}");
            }
            Err(_) => {
                self.failed += 1;
                println!("FAILED  {name} ({seconds:.1} s): it panicked");
            }
        }
    }
}
