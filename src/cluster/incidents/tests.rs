use std::time::Duration;

use super::*;
use crate::cluster::fixture::{gpu, part, report, sickness, since};
use crate::health::class::Class;

const AT: SystemTime = UNIX_EPOCH;

/// Tells everything, and answers with reasons and messages.
fn tell(heard: &mut Heard, report: &HealthReport) -> Vec<Told> {
    let news = heard.news(report, AT);
    for news in &news {
        heard.hear(news);
    }
    assert_eq!(heard.news(report, AT), [], "told twice");
    heard.all_told();
    news.into_iter().map(|news| news.told).collect()
}

fn reasons(told: &[Told]) -> Vec<&'static str> {
    told.iter().map(|told| told.reason).collect()
}

fn fault(reason: &'static str, message: &str) -> HealthReport {
    HealthReport {
        node: Some(NodeFault {
            reason,
            message: message.into(),
        }),
        ..report(vec![gpu(0, None)])
    }
}

#[test]
fn a_healthy_node_has_no_news() {
    let mut heard = Heard::default();
    assert_eq!(tell(&mut heard, &report(vec![gpu(0, None)])), []);
    let incomplete = HealthReport {
        complete: false,
        ..report(vec![gpu(0, Some(since(1)))])
    };
    assert_eq!(heard.news(&incomplete, AT), []);
}

#[test]
fn sick_and_well_again_is_two_events_of_one_incident() {
    let mut heard = Heard::default();
    let sick = tell(
        &mut heard,
        &report(vec![gpu(0, None), gpu(1, Some(since(1)))]),
    );
    assert_eq!(reasons(&sick), [UNHEALTHY]);
    assert!(sick[0].warning && sick[0].message.starts_with("GPU 1 (GPU-1): XID 48"));
    let well = tell(&mut heard, &report(vec![gpu(0, None), gpu(1, None)]));
    assert_eq!(reasons(&well), [RECOVERED]);
    assert!(!well[0].warning && well[0].message == "GPU 1 (GPU-1) is healthy again");
    assert_eq!(sick[0].incident, well[0].incident);
}

#[test]
fn what_comes_and_goes_untold_is_no_news() {
    let mut heard = Heard::default();
    let sick = report(vec![gpu(0, Some(since(1)))]);
    assert_eq!(heard.news(&sick, AT).len(), 1);
    assert_eq!(tell(&mut heard, &report(vec![gpu(0, None)])), []);
}

#[test]
fn sick_anew_while_nobody_could_be_told_is_an_incident_of_its_own() {
    let mut heard = Heard::default();
    let first = tell(&mut heard, &report(vec![gpu(0, Some(since(1)))]));
    let second = tell(&mut heard, &report(vec![gpu(0, Some(since(2)))]));
    assert_eq!(reasons(&second), [UNHEALTHY]);
    assert_ne!(first[0].incident, second[0].incident);
}

#[test]
fn a_graver_cause_is_told_and_new_words_are_not() {
    let mut heard = Heard::default();
    let hung = |seconds| {
        report(vec![gpu(
            0,
            Some(sickness(Cause::NotAnswering(seconds), Class::Reset)),
        )])
    };
    assert_eq!(tell(&mut heard, &hung(10)).len(), 1);
    assert_eq!(tell(&mut heard, &hung(20)), []);
    let lost = report(vec![gpu(0, Some(sickness(Cause::Xid(79), Class::Reboot)))]);
    assert_eq!(reasons(&tell(&mut heard, &lost)), [UNHEALTHY]);
}

#[test]
fn a_restart_names_the_incident_alike() {
    let sick = report(vec![gpu(0, Some(since(1))), part(1, 2, 7)]);
    let before = tell(&mut Heard::default(), &sick);
    let after = tell(&mut Heard::default(), &sick);
    assert_eq!(before, after);
    assert!(before[1].message.contains("2 of its 7 devices"));
}

#[test]
fn a_nodes_fault_comes_and_goes() {
    let mut heard = Heard::default();
    assert_eq!(tell(&mut heard, &report(vec![gpu(0, None)])), []);
    let gone = tell(&mut heard, &fault("NoDriver", "no module"));
    assert_eq!(reasons(&gone), [UNHEALTHY]);
    assert_eq!(gone[0].message, "no GPU can be given: no module");
    assert_eq!(
        tell(&mut heard, &fault("NoDriver", "no module for 12 s")),
        []
    );
    let other = tell(&mut heard, &fault("NoDeviceNodes", "no nodes"));
    assert_eq!(reasons(&other), [UNHEALTHY]);
    let back = tell(&mut heard, &report(vec![gpu(0, None)]));
    assert_eq!(reasons(&back), [RECOVERED]);
    assert_eq!(back[0].incident, other[0].incident);
}

#[test]
fn a_fault_found_at_the_start_is_the_one_of_before() {
    let faulty = fault("NoDriver", "no module");
    let later = AT + Duration::from_secs(600);
    let first = Heard::default().news(&faulty, AT);
    assert_eq!(
        first[0].told.incident,
        Heard::default().news(&faulty, later)[0].told.incident
    );
    let mut heard = Heard::default();
    tell(&mut heard, &report(vec![gpu(0, None)]));
    let again = heard.news(&faulty, later);
    assert_ne!(first[0].told.incident, again[0].told.incident);
}
