use std::time::Duration;

use super::*;
use crate::cluster::fixture::{gpu, part, report, sickness};
use crate::gpu::GpuUuid;
use crate::health::cause::Cause;
use crate::health::class::Class;
use crate::health::report::NodeFault;
use crate::health::signals::Kind;

fn of(gpus: Vec<GpuStatus>) -> Condition {
    condition(&report(gpus)).unwrap()
}

fn lost() -> Sickness {
    sickness(Cause::Lost("nvmlDeviceGetMemoryInfo".into()), Class::Reset)
}

#[test]
fn nothing_is_said_before_every_gpu_was_looked_at() {
    let incomplete = HealthReport {
        complete: false,
        ..report(vec![gpu(0, Some(lost()))])
    };
    assert_eq!(condition(&incomplete), None);
    assert!(!all_out(&incomplete));
}

#[test]
fn all_is_well() {
    let condition = of(vec![gpu(0, None), gpu(1, None)]);
    assert_eq!(condition.status, Status::True);
    assert_eq!(condition.reason, "AllGpusHealthy");
    assert_eq!(condition.message, "every GPU is healthy");
}

#[test]
fn a_node_without_gpus_is_neither_well_nor_sick() {
    let condition = of(vec![]);
    assert_eq!(
        (condition.status, condition.reason),
        (Status::Unknown, "NoGpus")
    );
}

#[test]
fn a_sick_gpu_is_named_with_cause_class_and_remedy() {
    let condition = of(vec![gpu(0, None), gpu(1, Some(lost()))]);
    assert_eq!(
        (condition.status, condition.reason),
        (Status::False, "GpuLost")
    );
    assert_eq!(
        condition.message,
        "1 of 2 GPUs sick; GPU 1 (GPU-1): GPU is lost (nvmlDeviceGetMemoryInfo) \
         (class reset: reset the GPU, or reboot the node)"
    );
}

#[test]
fn a_gpu_without_an_index_is_named_by_its_uuid() {
    let gpu = GpuStatus {
        index: None,
        ..gpu(1, Some(sickness(Cause::Vanished, Class::Reset)))
    };
    let message = of(vec![gpu]).message;
    assert!(
        message.contains("; GPU GPU-1: GPU is not enumerated"),
        "{message}"
    );
}

#[test]
fn the_gravest_comes_first_and_gives_the_reason() {
    let remap = sickness(Cause::RowRemapFailure, Class::Replace);
    let off = sickness(Cause::OffBus, Class::Reset);
    let condition = of(vec![
        gpu(0, Some(lost())),
        gpu(1, Some(off)),
        gpu(2, Some(remap)),
    ]);
    assert_eq!(condition.reason, "RowRemapFailure");
    let places: Vec<_> = ["GPU 2", "GPU 1", "GPU 0"]
        .map(|name| condition.message.find(name).unwrap())
        .into();
    assert!(places.is_sorted(), "{}", condition.message);
}

#[test]
fn a_gpu_that_is_sick_in_part_says_how_much() {
    let condition = of(vec![part(3, 2, 7)]);
    assert_eq!(condition.status, Status::False);
    assert!(
        condition
            .message
            .contains("GPU 3 (GPU-3), 2 of its 7 devices: XID 48")
    );
}

#[test]
fn what_is_recovering_is_still_sick_but_wants_no_remedy() {
    let recovering = Sickness {
        recovering_until: Some(Duration::from_secs(90)),
        ..lost()
    };
    let condition = of(vec![gpu(0, Some(recovering))]);
    assert_eq!(condition.status, Status::False);
    assert!(condition.message.contains("the cause is gone"));
    assert!(!condition.message.contains("reboot"));
}

#[test]
fn a_nodes_fault_speaks_before_its_gpus() {
    let fault = NodeFault {
        reason: "NoDriver",
        message: "the kernel module is not loaded".into(),
    };
    let faulty = HealthReport {
        node: Some(fault),
        ..report(vec![gpu(0, None), gpu(1, Some(lost()))])
    };
    let said = condition(&faulty).unwrap();
    assert_eq!((said.status, said.reason), (Status::False, "NoDriver"));
    assert!(
        said.message
            .starts_with("the kernel module is not loaded; 1 of 2 GPUs sick; GPU 1")
    );
    let only_fault = HealthReport {
        gpus: vec![gpu(0, None)],
        ..faulty
    };
    let said = condition(&only_fault).unwrap();
    assert_eq!(said.message, "the kernel module is not loaded");
}

#[test]
fn a_message_is_bounded_and_says_how_many_it_leaves_out() {
    for count in 1..=64 {
        let condition = of((0..count).map(|index| gpu(index, Some(lost()))).collect());
        let message = condition.message;
        assert!(message.len() <= LONGEST_MESSAGE, "{}", message.len());
        let named = message.matches("; GPU ").count();
        let left_out = message.rsplit_once("; and ");
        let left_out = left_out.map_or(0, |(_, rest)| {
            rest.strip_suffix(" more").unwrap().parse().unwrap()
        });
        assert!(named > 0);
        assert_eq!(named + left_out, count as usize, "{message}");
    }
}

#[test]
fn long_words_in_any_alphabet_are_cut() {
    let long = Cause::Unreadable("ß".repeat(2000));
    let sick = |index| gpu(index, Some(sickness(long.clone(), Class::Reset)));
    let faulty = HealthReport {
        node: Some(NodeFault {
            reason: "NoDriver",
            message: "ü".repeat(2000),
        }),
        ..report((0..8).map(sick).collect())
    };
    let message = condition(&faulty).unwrap().message;
    assert!(message.len() <= LONGEST_MESSAGE, "{}", message.len());
    assert!(
        message.contains("GPU 0") && message.ends_with("more"),
        "{message}"
    );
}

#[test]
fn all_are_out_only_where_none_can_be_used() {
    let sick = || gpu(0, Some(lost()));
    for (gpus, out) in [
        (vec![], false),
        (vec![gpu(0, None)], false),
        (vec![sick(), gpu(1, None)], false),
        (vec![sick()], true),
        (vec![sick(), part(1, 1, 7)], false),
        (vec![sick(), part(1, 7, 7)], true),
    ] {
        assert_eq!(all_out(&report(gpus.clone())), out, "{gpus:?}");
    }
    let fault = HealthReport {
        node: Some(NodeFault {
            reason: "NoDriver",
            message: String::new(),
        }),
        ..report(vec![gpu(0, None)])
    };
    assert!(!all_out(&fault));
}

#[test]
fn a_gpu_without_devices_is_judged_by_itself() {
    let bare = GpuStatus {
        uuid: GpuUuid::from("GPU-9"),
        index: None,
        devices: vec![],
        sickness: None,
        notes: vec![Kind::PowerSlowdown],
    };
    assert!(!all_out(&report(vec![bare.clone()])));
    assert_eq!(of(vec![bare]).status, Status::True);
}
