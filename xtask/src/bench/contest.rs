//! Who is compared with whom: groups of contestants that are measured in turns.

use super::measure::Unit;
use super::task::{Copier, Place, Task};

/// Contestants of one question, measured one after the other in each round.
pub(crate) struct Group {
    /// First part of its contestants' ids.
    pub(crate) name: String,
    /// Heading of the report.
    pub(crate) title: String,
    /// What its values are in.
    pub(crate) unit: Unit,
    /// What a reader should know.
    pub(crate) about: &'static str,
    /// Who takes part.
    pub(crate) members: Vec<Member>,
}

/// One contestant.
pub(crate) struct Member {
    /// `group/who/what`.
    pub(crate) id: String,
    /// What it does.
    pub(crate) task: Task,
}

/// Sizes of the bandwidth groups.
pub(crate) const SIZES: [(&str, usize); 6] = [
    ("4k", 4 << 10),
    ("16k", 16 << 10),
    ("64k", 64 << 10),
    ("256k", 256 << 10),
    ("1m", 1 << 20),
    ("4m", 4 << 20),
];

/// All groups, in the order of the report.
pub(crate) fn groups() -> Vec<Group> {
    let mut groups = vec![latency(), rate()];
    groups.extend(SIZES.map(|(name, size)| bandwidth(name, size)));
    groups.extend([
        buffer(),
        loss(),
        scaling_bandwidth(),
        scaling_rate(),
        scaling_pairs(),
        copies("tmpfs", Place::Memory),
        copies("disk", Place::Disk),
        memory(),
    ]);
    groups
}

impl Group {
    fn new(name: &str, title: &str, unit: Unit, about: &'static str) -> Self {
        Self {
            name: name.to_owned(),
            title: title.to_owned(),
            unit,
            about,
            members: Vec::new(),
        }
    }

    fn add(mut self, who: &str, what: &str, task: Task) -> Self {
        let id = format!("{}/{who}/{what}", self.name);
        self.members.push(Member { id, task });
        self
    }
}

fn latency() -> Group {
    let probe = |name: &str| probe(&[name]);
    let trip = |provider, op| perf(provider, op, 8, 1, "latency", &[]);
    let mut spinning = perf("softroce", "write", 8, 1, "latency", &["--target", "spin"]);
    if let Task::Perf { share, .. } = &mut spinning {
        // It is timed to its completion, there and back; all others are one way.
        *share = 0.5;
    }
    let mut group = Group::new(
        "latency",
        "Latency",
        Unit::Microseconds,
        "Eight bytes (the raw sockets and libfabric: 64), one way: half of the median round trip, or half of the time to \
         the completion where the target makes no call. Both sides spin.",
    )
    .add("raw", "cache-line", probe("line"))
    .add("raw", "udp", probe("udp-latency"))
    .add("raw", "tcp", probe("tcp-latency"))
    .add("softroce", "write", trip("softroce", "write"))
    .add("softroce", "send", trip("softroce", "send"))
    .add(
        "softroce",
        "write-to-a-spinning-target",
        spinning,
    )
    .add("shm", "write", trip("shm", "write"))
    .add("shm", "send", trip("shm", "send"));
    for (who, transports, rates) in [
        ("ucx-tcp", "tcp,self", [30e3, 80e3, 80e3]),
        ("ucx-posix", "posix,self", [3e6, 2e6, 2e6]),
    ] {
        let tests = [
            ("put", "ucp_put_lat"),
            ("am", "ucp_am_lat"),
            ("tag", "tag_lat"),
        ];
        for ((what, test), rate) in tests.into_iter().zip(rates) {
            group = group.add(who, what, ucx(transports, test, 8, rate));
        }
    }
    for (who, provider, endpoint, rate) in FABRICS {
        group = group.add(who, "msg", ping_pong(provider, endpoint, 64, rate));
    }
    group
}

/// libfabric's providers: who, name, endpoint, round trips of 64 bytes in a second.
const FABRICS: [(&str, &str, &str, f64); 5] = [
    ("libfabric-tcp", "tcp", "msg", 60e3),
    ("libfabric-tcp-rxm", "tcp;ofi_rxm", "rdm", 50e3),
    ("libfabric-udp-rxd", "udp;ofi_rxd", "rdm", 40e3),
    ("libfabric-shm", "shm", "rdm", 1e6),
    ("libfabric-sm2", "sm2", "rdm", 1e6),
];

fn rate() -> Group {
    let many = |provider, op| perf(provider, op, 8, 256, "bandwidth", &[]);
    let mut group = Group::new(
        "rate",
        "Message rate",
        Unit::MillionsPerSecond,
        "Messages of eight bytes, many outstanding. The raw probe sends datagrams of 64 bytes by segmentation offload.",
    )
    .add("raw", "udp-64-byte-segments", probe(&["udp-stream", "--segment", "64"]))
    .add("softroce", "write", many("softroce", "write"))
    .add("softroce", "send", many("softroce", "send"))
    .add("shm", "write", many("shm", "write"))
    .add("shm", "send", many("shm", "send"));
    for (who, transports, rates) in [
        ("ucx-tcp", "tcp,self", [250e3, 250e3, 250e3]),
        ("ucx-posix", "posix,self", [20e6, 5e6, 8e6]),
    ] {
        let tests = [
            ("put", "ucp_put_bw"),
            ("am", "ucp_am_bw"),
            ("tag", "tag_bw"),
        ];
        for ((what, test), rate) in tests.into_iter().zip(rates) {
            group = group.add(who, what, ucx(transports, test, 8, rate));
        }
    }
    group
}

fn bandwidth(name: &str, size: usize) -> Group {
    // How many messages make a second, from what they carry in Gbit/s and what each costs in µs.
    let messages =
        |gbit: f64, microseconds: f64| 1e6 / (microseconds + size as f64 * 8.0 / gbit / 1e3);
    let depth = ((4 << 20) / size).clamp(4, 64);
    let one = |provider, op| perf(provider, op, size, depth, "bandwidth", &[]);
    let shown = if size < 1 << 20 {
        format!("{} KiB", size >> 10)
    } else {
        format!("{} MiB", size >> 20)
    };
    let mut group = Group::new(
        &format!("bandwidth-{name}"),
        &format!("Bandwidth, messages of {shown}"),
        Unit::GbitPerSecond,
        "One queue pair, several messages outstanding. fi_pingpong has one message under way: its figure is no stream's.",
    )
    .add("raw", "copy", probe(&["copy", "--size", &size.to_string()]))
    .add("raw", "udp-4112-byte-segments", probe(&["udp-stream"]))
    .add("raw", "tcp-64-KiB-writes", probe(&["tcp-stream"]))
    .add("softroce", "write", one("softroce", "write"))
    .add("shm", "write", one("shm", "write"));
    let named = matches!(name, "64k" | "1m");
    if named {
        for provider in ["softroce", "shm"] {
            group = group.add(provider, "read", one(provider, "read")).add(
                provider,
                "send",
                one(provider, "send"),
            );
        }
    }
    for (who, transports, put, tag, get) in [
        (
            "ucx-tcp",
            "tcp,self",
            messages(6.0, 4.0),
            messages(40.0, 4.0),
            messages(4.0, 50.0),
        ),
        (
            "ucx-posix",
            "posix,self",
            messages(300.0, 0.1),
            messages(200.0, 0.5),
            messages(200.0, 1.0),
        ),
    ] {
        group = group
            .add(who, "put", ucx(transports, "ucp_put_bw", size, put))
            .add(who, "tag", ucx(transports, "tag_bw", size, tag));
        if named {
            group = group.add(who, "get", ucx(transports, "ucp_get", size, get));
        }
    }
    if named {
        for (who, provider, endpoint, small) in FABRICS {
            let gbit = match who {
                "libfabric-udp-rxd" => 0.6,
                "libfabric-shm" | "libfabric-sm2" => 40.0,
                _ => 10.0,
            };
            // A round trip carries two messages.
            let rate = messages(gbit, 0.5e6 / small) / 2.0;
            group = group.add(who, "msg", ping_pong(provider, endpoint, size, rate));
        }
    }
    group
}

fn buffer() -> Group {
    let ours = |buffer: &'static str| {
        let mut task = perf("softroce", "write", 1 << 20, 4, "bandwidth", &[]);
        if let Task::Perf { environment, .. } = &mut task {
            environment.push(("RINGMAIL_SOFTROCE_RECEIVE_BUFFER", buffer));
        }
        task
    };
    Group::new(
        "receive-buffer",
        "Receive buffer",
        Unit::GbitPerSecond,
        "Writes of 1 MiB with the receive buffer that a socket has that asks for nothing, and with as much as this machine \
         allows. The raw probe does not ask what arrives; what it sends is dropped where the receiver is slower.",
    )
    .add("raw", "udp-default", probe(&["udp-stream", "--receive-buffer", "0"]))
    .add("raw", "udp-largest", probe(&["udp-stream"]))
    .add("softroce", "write-default", ours("0"))
    .add("softroce", "write-largest", ours("4mb"))
}

fn loss() -> Group {
    let lossy = |faults: bool, extensions: bool| {
        let mut task = perf("softroce", "write", 1 << 20, 4, "bandwidth", &[]);
        if let Task::Perf { environment, .. } = &mut task {
            if faults {
                environment.push(("RINGMAIL_FAULTS", "loss=1%,seed=1"));
            }
            if !extensions {
                environment.push(("RINGMAIL_EXTENSIONS", "off"));
            }
        }
        task
    };
    Group::new(
        "loss",
        "Goodput under loss",
        Unit::GbitPerSecond,
        "Writes of 1 MiB on one queue pair; 1 % of all packets are lost, in both directions. Selective repeat is between \
         Ringmail's own devices, go-back-N is what they speak to others.",
    )
    .add("softroce", "lossless-selective-repeat", lossy(false, true))
    .add("softroce", "lossless-go-back-n", lossy(false, false))
    .add("softroce", "loss-selective-repeat", lossy(true, true))
    .add("softroce", "loss-go-back-n", lossy(true, false))
}

/// Queue pairs of the scaling groups.
pub(crate) const QPS: [usize; 4] = [1, 8, 64, 512];
/// Pairs of processes of the scaling group.
pub(crate) const PAIRS: [usize; 3] = [1, 2, 4];

/// So many of something, as a part of an id.
pub(crate) fn counted(count: usize, what: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count}-{what}{plural}")
}

fn scaling_bandwidth() -> Group {
    let group = Group::new(
        "scaling-bandwidth",
        "Scaling: bandwidth over queue pairs",
        Unit::GbitPerSecond,
        "Writes of 64 KiB, 64 outstanding in all (one on each queue pair at least), between two processes.",
    );
    over_queue_pairs(group, 64 << 10, 64)
}

fn scaling_rate() -> Group {
    let group = Group::new(
        "scaling-rate",
        "Scaling: message rate over queue pairs",
        Unit::MillionsPerSecond,
        "Writes of eight bytes, 1,024 outstanding in all, between two processes.",
    );
    over_queue_pairs(group, 8, 1024)
}

fn over_queue_pairs(mut group: Group, size: usize, outstanding: usize) -> Group {
    for provider in ["softroce", "shm"] {
        for qps in QPS {
            let depth = (outstanding / qps).clamp(1, 256);
            let count = qps.to_string();
            let task = perf(
                provider,
                "write",
                size,
                depth,
                "bandwidth",
                &["--qps", &count],
            );
            group = group.add(provider, &counted(qps, "queue-pair"), task);
        }
    }
    group
}

fn scaling_pairs() -> Group {
    let mut group = Group::new(
        "scaling-pairs",
        "Scaling: pairs of processes",
        Unit::GbitPerSecond,
        "Writes of 64 KiB, the sum of pairs that run at once on the same two cores; pollers yield.",
    );
    for provider in ["softroce", "shm"] {
        for pairs in PAIRS {
            let mut task = perf(provider, "write", 64 << 10, 16, "bandwidth", &["--yield"]);
            if let Task::Perf { at_once, .. } = &mut task {
                *at_once = pairs;
            }
            group = group.add(provider, &counted(pairs, "process-pair"), task);
        }
    }
    group
}

fn copies(name: &str, to: Place) -> Group {
    let copy = |by| Task::Copy { by, to };
    Group::new(
        &format!("cp-{name}"),
        &format!("Copying a file, {name}"),
        Unit::GbitPerSecond,
        "The source lies in the page cache, the copy has a fresh name; what earlier copies wrote is on disk before the clock \
         starts, and nothing waits for the disk. Ringmail's copies are verified by checksums.",
    )
    .add("coreutils", "cp", copy(Copier::Coreutils))
    .add("shm", "cp", copy(Copier::Ringmail("shm")))
    .add("softroce", "cp", copy(Copier::Ringmail("softroce")))
}

fn memory() -> Group {
    Group::new(
        "memory",
        "Memory",
        Unit::Bytes,
        "Heap of one connected, idle queue pair with room for 128 sends and 128 receives, counted by a test.",
    )
    .add("softroce", "idle-queue-pair", Task::QueuePair)
}

fn probe(arguments: &[&str]) -> Task {
    Task::Probe(arguments.iter().map(|&word| word.to_owned()).collect())
}

fn ucx(transports: &'static str, test: &'static str, size: usize, rate: f64) -> Task {
    Task::Ucx {
        transports,
        test,
        size,
        rate,
    }
}

fn ping_pong(provider: &'static str, endpoint: &'static str, size: usize, rate: f64) -> Task {
    Task::PingPong {
        provider,
        endpoint,
        size,
        rate,
    }
}

fn perf(provider: &str, op: &str, size: usize, depth: usize, mode: &str, more: &[&str]) -> Task {
    let (size, depth) = (size.to_string(), depth.to_string());
    let words = [
        ["--provider", provider],
        ["--op", op],
        ["--size", &size],
        ["--depth", &depth],
        ["--mode", mode],
    ];
    let words = words.iter().flatten().chain(more);
    Task::Perf {
        arguments: words.map(|&word| word.to_owned()).collect(),
        environment: Vec::new(),
        at_once: 1,
        share: 1.0,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::bench::results::group_of;

    #[test]
    fn every_contestant_has_a_name_of_its_own_in_its_group() {
        let mut seen = HashSet::new();
        for group in groups() {
            for member in group.members {
                assert_eq!(group_of(&member.id), group.name);
                assert_eq!(member.id.split('/').count(), 3, "{}", member.id);
                assert!(seen.insert(member.id.clone()), "{} twice", member.id);
            }
        }
    }
}
