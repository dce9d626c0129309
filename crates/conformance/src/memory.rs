//! Memory of all kinds takes part in work, and comes back.

use fabric::{Access, Buf, Error, FileMapping, Memory, PostError, Work};

use crate::Skip;
use crate::bench::{Bench, bytes, pattern};

type Tested = Result<(), Skip>;

pub(crate) fn a_read_goes_straight_into_exposed_memory(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let source = pair.b.region(5000);
    source.write(0, &pattern(5000, 2)).expect("in bounds");
    let target = pair.a.region_with(8192, Access::LOCAL);
    let range = target.slice(100..5100).expect("in bounds");
    pair.a.run(Work::read(1, range, source.remote()));
    assert_eq!(bytes(&target)[100..5100], pattern(5000, 2));
    assert_eq!(bytes(&target)[99], 0);
    assert_eq!(bytes(&target)[5100], 0);
    Ok(())
}

pub(crate) fn a_file_is_read_into_a_file(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let directory = tempfile::tempdir().expect("a directory");
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let content = pattern(300_003, 4);
    std::fs::write(&from, &content).expect("written");
    let mapping = FileMapping::open_read(&from).expect("mapped");
    let source = pair
        .b
        .domain
        .register(mapping.memory().clone(), Access::REMOTE_READ)
        .expect("a read-only file registers for reading");
    let mapping = FileMapping::create(&to, 300_003).expect("mapped");
    let target = pair
        .a
        .domain
        .register(mapping.memory().clone(), Access::LOCAL)
        .expect("registers");
    for (context, start) in (0..300_003).step_by(65_536).enumerate() {
        let end = (start + 65_536).min(300_003);
        let range = target.slice(start..end).expect("in bounds");
        let remote = source.remote().at(start as u64);
        pair.a.post(Work::read(context as u64, range, remote));
    }
    pair.a.collect(5).into_iter().for_each(|completion| {
        completion.ok().expect("each read succeeds");
    });
    drop((target, mapping));
    assert!(
        std::fs::read(&to).expect("read") == content,
        "the file changed on the way"
    );
    Ok(())
}

pub(crate) fn a_read_only_file_is_not_registered_for_writing(bench: &Bench<'_>) -> Tested {
    let side = bench.side(16, |builder| builder);
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [7; 100]).expect("written");
    let mapping = FileMapping::open_read(file.path()).expect("mapped");
    let refused = side
        .domain
        .register(mapping.memory().clone(), Access::REMOTE_WRITE);
    assert!(matches!(refused, Err(Error::ReadOnly)), "{refused:?}");
    Ok(())
}

pub(crate) fn nothing_is_placed_in_a_read_only_file(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), [7; 100]).expect("written");
    let mapping = FileMapping::open_read(file.path()).expect("mapped");
    let region = pair
        .a
        .domain
        .register(mapping.memory().clone(), Access::LOCAL)
        .expect("registers");
    let range = region.slice(0..100).expect("in bounds");
    let refused = pair.a.refused(Work::recv(1, range));
    assert_eq!(refused.error, PostError::ReadOnly);
    pair.b.post(Work::recv(1, pair.b.empty(100)));
    pair.a.run(Work::send(2, refused.work.local));
    assert_eq!(pair.b.success(1).data(), [7; 100]);
    Ok(())
}

pub(crate) fn a_truncated_file_fails_the_work_and_not_the_process(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), vec![7; 100_000]).expect("written");
    let mapping = FileMapping::open_read(file.path()).expect("mapped");
    let region = pair
        .b
        .domain
        .register(mapping.memory().clone(), Access::REMOTE_READ)
        .expect("registers");
    file.as_file().set_len(0).expect("truncated");
    let work = Work::read(1, pair.a.empty(50_000), region.remote());
    let status = pair.a.fate(work);
    assert!(
        !status.is_success(),
        "bytes were read that the file no longer has"
    );
    Ok(())
}

pub(crate) fn a_region_becomes_a_buffer_again(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(16);
    pair.a
        .run(Work::write(1, pair.a.buf(b"before"), region.remote()));
    let buf = region.revoke().expect("the last handle");
    assert_eq!(&buf[..8], b"before\0\0");
    let buf = pair.b.domain.adopt(buf).expect("adopted");
    pair.b.post(Work::recv(2, buf));
    pair.a.run(Work::send(3, pair.a.buf(b"after")));
    assert_eq!(pair.b.success(2).data(), b"after");
    Ok(())
}

pub(crate) fn a_region_in_use_is_revoked_but_stays_a_region(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let region = pair.b.region(16);
    let held = region.clone();
    let region = region.revoke().expect_err("another handle is left");
    assert!(region.is_revoked() && held.is_revoked());
    drop(held);
    region.revoke().expect("now it is the last");
    Ok(())
}

pub(crate) fn a_buffer_shows_as_much_as_was_asked(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let mut buf = pair.a.buf(b"0123456789");
    buf.set_len(4);
    pair.b.post(Work::recv(1, pair.b.empty(16)));
    let sent = pair.a.run(Work::send(2, buf));
    assert_eq!(sent.len, 4);
    let received = bench.arrival(&pair, 1, || {
        drop(pair.a.run(Work::send(2, pair.a.buf(b"0123"))))
    });
    assert_eq!(received.data(), b"0123");
    let mut buf = sent.into_buf().expect("the buffer comes back");
    assert_eq!((buf.len(), buf.capacity()), (4, 10));
    buf.set_len(10);
    assert_eq!(&buf[..], b"0123456789");
    Ok(())
}

pub(crate) fn memory_outlives_the_handles_to_it(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    pair.b.post(Work::recv(1, pair.b.empty(5)));
    let region = pair.a.region(8);
    region.write(0, b"still").expect("in bounds");
    pair.a
        .post(Work::send(2, region.slice(0..5).expect("in bounds")));
    drop(region);
    assert_eq!(pair.b.success(1).data(), b"still");
    pair.a.success(2);
    Ok(())
}

pub(crate) fn memory_of_another_domain_is_refused(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let foreign = pair.b.region(8);
    let work = Work::send(1, foreign.slice(0..8).expect("in bounds"));
    assert_eq!(pair.a.refused(work).error, PostError::OtherDomain);
    Ok(())
}

pub(crate) fn large_memory_is_reached_at_its_end(bench: &Bench<'_>) -> Tested {
    let pair = bench.pair();
    let len = 64 << 20;
    let region = pair
        .b
        .domain
        .register(Memory::allocate(len), Access::all())
        .expect("registers");
    let remote = region.remote().at(len as u64 - 5);
    pair.a.run(Work::write(
        1,
        Buf::from(&b"l"[..]).into_segment(&pair.a),
        remote,
    ));
    let mut end = [9; 5];
    region.read(len - 5, &mut end).expect("in bounds");
    assert_eq!(&end, b"l\0\0\0\0");
    Ok(())
}

/// A buffer that was not made by the domain is adopted by it.
trait IntoSegment {
    fn into_segment(self, side: &crate::bench::Side) -> fabric::Segment;
}

impl IntoSegment for Buf {
    fn into_segment(self, side: &crate::bench::Side) -> fabric::Segment {
        side.domain.adopt(self).expect("adopted").into()
    }
}
