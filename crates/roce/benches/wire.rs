//! What does a packet's header work cost: parse, emit, checksum, Identification?
//!
//! `cargo bench -p ringmail-roce`. Prints nanoseconds a packet, the best of several rounds.

use std::hint::black_box;
use std::time::Instant;

use ringmail_roce::wire::icrc::{IdBasis, Identification, Path};
use ringmail_roce::wire::{
    Aeth, Bth, Headers, Key, MAX_HEADERS, Opcode, Operation, Psn, Qpn, Reth, Sack, Syndrome,
};

fn main() {
    let mut write = headers(Operation::WriteOnly);
    write.reth = Some(Reth {
        va: 0x1000,
        rkey: Key(7),
        length: 4096,
    });
    let mut ack = headers(Operation::Acknowledge);
    ack.aeth = Some(Aeth {
        syndrome: Syndrome::ACK,
        msn: 9,
    });
    let mut sack = Headers::new(Bth {
        opcode: Opcode::Sack,
        ..ack.bth
    });
    sack.aeth = ack.aeth;
    sack.sack = Some(Sack::default());
    let middle = headers(Operation::WriteMiddle);

    let source = "127.0.0.1:49152".parse().expect("an address");
    let destination = "127.0.0.2:4791".parse().expect("an address");
    let path = Path::new(source, destination).expect("one family");

    for (name, headers, payload) in [
        ("acknowledge", ack, 0),
        ("sack", sack, 0),
        ("write middle 1024", middle, 1024),
        ("write only 4096", write, 4096),
    ] {
        let mut packet = [0; MAX_HEADERS + 4100];
        let len = headers.emit(packet.first_chunk_mut().expect("room"));
        let end = len + payload;
        let seal = |packet: &[u8], id| {
            path.start(end + 4, id)
                .headers(&packet[..len])
                .payload(&packet[len..end])
                .finish()
        };
        let other_id = seal(&packet, 1234);
        let icrc = seal(&packet, 0);
        packet[end..end + 4].copy_from_slice(&icrc);
        let packet = &packet[..end + 4];
        let mut of_rxe = packet.to_vec();
        of_rxe[end..].copy_from_slice(&other_id);
        let mut basis = IdBasis::new();

        let parse = best(|| Headers::parse(black_box(packet)));
        let emit = best(|| {
            let mut out = [0; MAX_HEADERS];
            let len = black_box(&headers).emit(&mut out);
            (out, len)
        });
        let start = best(|| black_box(&path).start(black_box(end + 4), 0));
        let sum = best(|| seal(black_box(packet), 0));
        let append = best(|| path.start(end + 4, 0).append(black_box(7), payload as u64));
        let exact = best(|| {
            path.verify(black_box(packet), Identification::Unknown, &mut basis)
                .is_valid()
        });
        let found = best(|| {
            path.verify(black_box(&of_rxe), Identification::Unknown, &mut basis)
                .is_valid()
        });
        println!(
            "{name:18} parse {parse:6.1}  emit {emit:6.1}  icrc start {start:6.1}  whole {sum:6.1}  \
             start and append {append:6.1}  verify {exact:6.1}  verify and find identification {found:6.1}"
        );
    }
}

fn headers(operation: Operation) -> Headers {
    Headers::new(Bth::new(Opcode::Rc(operation), Qpn::new(0x12), Psn::new(5)))
}

/// Nanoseconds a call, the best of several rounds.
fn best<T>(mut call: impl FnMut() -> T) -> f64 {
    const CALLS: u32 = 100_000;
    let mut best = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        for _ in 0..CALLS {
            black_box(call());
        }
        best = best.min(start.elapsed().as_nanos() as f64 / f64::from(CALLS));
    }
    best
}
