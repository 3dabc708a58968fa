use super::*;

/// A GPU; without profiles it is not in MIG mode.
fn gpu(index: u32, profiles: &[&str]) -> Gpu {
    let uuid = GpuUuid::from(format!("GPU-{index}").as_str());
    let mig = |(number, profile): (usize, &&str)| MigDevice {
        uuid: format!("MIG-{index}-{profile}-{number}"),
        parent_uuid: uuid.clone(),
        index: number as u32,
        gpu_instance_id: number as u32 + 1,
        compute_instance_id: 0,
        profile: (*profile).into(),
        memory_bytes: 1 << 30,
    };
    Gpu {
        mig_enabled: !profiles.is_empty(),
        mig_devices: profiles.iter().enumerate().map(mig).collect(),
        uuid: uuid.clone(),
        index,
        minor_number: index,
        pci_bus_id: format!("00000000:{index:02X}:00.0"),
        numa_node: None,
        memory_bytes: None,
        compute_capability: None,
        product_name: "NVIDIA H200".into(),
    }
}

fn advertised(strategy: MigStrategy, shared: Vec<SharedResource>) -> Advertised {
    Advertised::new(Rules {
        mig_strategy: strategy,
        sharing: Sharing::new(false, shared).unwrap(),
        ..Rules::default()
    })
}

fn update(advertised: &mut Advertised, gpus: &[Gpu]) {
    let seen = gpus.iter().map(|gpu| Seen {
        uuid: &gpu.uuid,
        index: gpu.index,
        gpu: Some(gpu),
        found: true,
    });
    advertised.update(&seen.collect::<Vec<_>>());
}

/// `resource ID`, with a minus before what is withdrawn.
fn listed(advertised: &Advertised) -> Vec<String> {
    let resources = advertised.resources().iter();
    let slots = resources.flat_map(|(resource, slots)| {
        let name = resource.rsplit('/').next().unwrap();
        slots.iter().map(move |(id, slot)| {
            let sign = if slot.withdrawn.is_some() { "-" } else { "" };
            format!("{sign}{name} {id}")
        })
    });
    slots.collect()
}

fn shared(name: &str, rename: Option<&str>, devices: SharedDevices) -> SharedResource {
    SharedResource::new(name, rename, false, devices, 2).unwrap()
}

#[test]
fn without_a_strategy_a_gpu_is_one_device_whatever_its_mode() {
    let mut none = advertised(MigStrategy::None, Vec::new());
    update(&mut none, &[gpu(0, &["1g.18gb"]), gpu(1, &[])]);
    assert_eq!(listed(&none), ["gpu GPU-0", "gpu GPU-1"]);
}

#[test]
fn mixed_names_each_profile_beside_whole_gpus() {
    let mut mixed = advertised(MigStrategy::Mixed, Vec::new());
    let gpus = [
        gpu(0, &["1g.18gb", "1g.18gb+me", "1c.2g.35gb"]),
        gpu(1, &[]),
    ];
    update(&mut mixed, &gpus);
    let expected = [
        "gpu GPU-1",
        "mig-1g.18gb MIG-0-1g.18gb-0",
        "mig-1g.18gb.me MIG-0-1g.18gb+me-1",
    ];
    assert_eq!(listed(&mixed), expected);
    let left_out = mixed.left_out().unwrap();
    assert!(
        left_out.contains("profile 1c.2g.35gb, a part"),
        "{left_out}"
    );
    update(&mut mixed, &[gpu(0, &["1g.18gb"])]);
    assert_eq!(mixed.left_out(), None);
}

#[test]
fn what_was_advertised_stays_under_its_name() {
    let mut mixed = advertised(MigStrategy::Mixed, Vec::new());
    update(&mut mixed, &[gpu(0, &[])]);
    update(&mut mixed, &[gpu(0, &["1g.18gb"])]);
    update(&mut mixed, &[gpu(0, &["2g.35gb"])]);
    let expected = [
        "-gpu GPU-0",
        "-mig-1g.18gb MIG-0-1g.18gb-0",
        "mig-2g.35gb MIG-0-2g.35gb-0",
    ];
    assert_eq!(listed(&mixed), expected);
    let why = |resource: &str| {
        let mut slots = mixed.resources()[resource].values();
        slots
            .next()
            .and_then(|slot| slot.withdrawn.clone())
            .unwrap()
    };
    assert_eq!(&*why("nvidia.com/gpu"), MIG_MODE);
    assert_eq!(&*why("nvidia.com/mig-1g.18gb"), NO_MIG_DEVICE);
    update(&mut mixed, &[gpu(0, &[])]);
    assert_eq!(listed(&mixed)[0], "gpu GPU-0", "it is back");
}

#[test]
fn single_gives_mig_devices_the_name_of_gpus_where_all_are_alike() {
    let mut single = advertised(MigStrategy::Single, Vec::new());
    update(&mut single, &[gpu(0, &[]), gpu(1, &[])]);
    assert_eq!(listed(&single), ["gpu GPU-0", "gpu GPU-1"]);
    let both = ["1g.18gb", "1g.18gb"];
    update(&mut single, &[gpu(0, &both), gpu(1, &both[..1])]);
    let expected = [
        "-gpu GPU-0",
        "-gpu GPU-1",
        "gpu MIG-0-1g.18gb-0",
        "gpu MIG-0-1g.18gb-1",
        "gpu MIG-1-1g.18gb-0",
    ];
    assert_eq!(listed(&single), expected);
    assert_eq!(single.refused(), None);
}

#[test]
fn single_advertises_nothing_where_they_are_not_and_says_why() {
    let empty = Gpu {
        mig_enabled: true,
        ..gpu(1, &[])
    };
    for (gpus, why) in [
        (
            [gpu(0, &["1g.18gb"]), gpu(1, &[])],
            "GPU 1 not in MIG mode; GPU 0 with 1g.18gb",
        ),
        (
            [gpu(0, &["1g.18gb"]), gpu(1, &["2g.35gb"])],
            "GPU 0 with 1g.18gb; GPU 1 with 2g.35gb",
        ),
        (
            [gpu(0, &["1c.2g.35gb"]), gpu(1, &["1c.2g.35gb"])],
            "GPUs 0, 1 with 1c.2g.35gb (a part",
        ),
        (
            [gpu(0, &["1g.18gb"]), empty.clone()],
            "GPU 1 in MIG mode without a MIG device",
        ),
    ] {
        let mut single = advertised(MigStrategy::Single, Vec::new());
        update(&mut single, &[gpu(0, &["1g.18gb"])]);
        update(&mut single, &gpus);
        assert_eq!(listed(&single), ["-gpu MIG-0-1g.18gb-0"]);
        let said = single.refused().unwrap();
        assert!(said.contains(why), "{said}");
        update(&mut single, &[gpu(0, &["1g.18gb"])]);
        assert_eq!(listed(&single), ["gpu MIG-0-1g.18gb-0"]);
        assert_eq!(single.refused(), None);
    }
}

#[test]
fn a_gpu_that_cannot_be_read_does_not_spoil_a_single_layout() {
    let mut single = advertised(MigStrategy::Single, Vec::new());
    let (mig, lost) = (gpu(0, &["1g.18gb"]), gpu(1, &[]));
    fn seen(gpu: &Gpu, found: bool) -> Seen<'_> {
        Seen {
            uuid: &gpu.uuid,
            index: gpu.index,
            gpu: Some(gpu),
            found,
        }
    }
    single.update(&[seen(&mig, true), seen(&lost, false)]);
    assert_eq!(listed(&single), ["gpu MIG-0-1g.18gb-0"]);
    single.update(&[seen(&mig, false)]);
    assert_eq!(listed(&single), ["gpu MIG-0-1g.18gb-0"], "it was like that");
}

#[test]
fn all_devices_of_a_resource_are_shared_and_renamed_as_that_is_said() {
    let rules = vec![
        shared("gpu", Some("turns"), SharedDevices::All),
        shared("mig-1g.18gb", None, SharedDevices::All),
    ];
    let mut mixed = advertised(MigStrategy::Mixed, rules);
    assert_eq!(mixed.rules().first_resource(), "nvidia.com/turns");
    update(&mut mixed, &[gpu(0, &[]), gpu(1, &["1g.18gb"])]);
    let expected = [
        "mig-1g.18gb MIG-1-1g.18gb-0::0",
        "mig-1g.18gb MIG-1-1g.18gb-0::1",
        "turns GPU-0::0",
        "turns GPU-0::1",
    ];
    assert_eq!(listed(&mixed), expected);
}

#[test]
fn some_devices_are_shared_and_the_choice_stands() {
    let names = ["1", "2:0"].map(|name| DeviceName::parse(name).unwrap());
    let rules = vec![shared(
        "gpu",
        Some("turns"),
        SharedDevices::List(names.into()),
    )];
    let mut none = advertised(MigStrategy::None, rules);
    update(&mut none, &[gpu(0, &[]), gpu(1, &[])]);
    let expected = ["gpu GPU-0", "turns GPU-1::0", "turns GPU-1::1"];
    assert_eq!(listed(&none), expected);

    let rules = vec![shared("gpu", None, SharedDevices::Count(1))];
    let mut count = advertised(MigStrategy::None, rules);
    update(&mut count, &[gpu(0, &[]), gpu(1, &[])]);
    let expected = ["gpu GPU-0::0", "gpu GPU-0::1", "gpu GPU-1"];
    assert_eq!(listed(&count), expected);
    // GPU 0 vanishes, and the other one has its index.
    let moved = Gpu {
        index: 0,
        ..gpu(1, &[])
    };
    update(&mut count, &[moved]);
    assert_eq!(listed(&count).last().unwrap(), "gpu GPU-1");
}

#[test]
fn what_a_pod_holds_is_listed_as_it_holds_it() {
    let rules = vec![shared("gpu", None, SharedDevices::All)];
    let mut none = advertised(MigStrategy::None, rules);
    let held = |id: &str| Held {
        resource: "nvidia.com/gpu".into(),
        id: id.into(),
        numa_node: None,
    };
    assert_eq!(none.remember(&held("GPU-1::1")), Some("GPU-1".into()));
    assert_eq!(none.remember(&held("MIG-a")), None);
    assert_eq!(none.remember(&held("GPU-0::7")), Some("GPU-0".into()));
    update(&mut none, &[gpu(0, &[])]);
    let expected = [
        "gpu GPU-0::0",
        "gpu GPU-0::1",
        "-gpu GPU-0::7",
        "-gpu GPU-1::1",
        "-gpu MIG-a",
    ];
    assert_eq!(listed(&none), expected);
}

#[test]
fn only_resources_of_ours_are_remembered() {
    let rules = Rules {
        mig_strategy: MigStrategy::Mixed,
        sharing: Sharing::new(
            false,
            vec![shared("gpu", Some("turns"), SharedDevices::All)],
        )
        .unwrap(),
        ..Rules::default()
    };
    for ours in [
        "nvidia.com/gpu",
        "nvidia.com/turns",
        "nvidia.com/mig-1g.18gb",
    ] {
        assert!(rules.may_advertise(ours), "{ours}");
    }
    for other in [
        "example.com/gpu",
        "example.com/mig-1g.18gb",
        "nvidia.com/other",
    ] {
        assert!(!rules.may_advertise(other), "{other}");
    }
}
