//! Whatever bytes arrive, parsing ends in a value or an error, and a value re-emits to what it parses to.

use proptest::prelude::*;
use ringmail_roce::trace::Line;
use ringmail_roce::wire::cm::Message;
use ringmail_roce::wire::extension::Hello;
use ringmail_roce::wire::mad::MAD_LEN;
use ringmail_roce::wire::{Grh, Headers, ICRC_LEN, MAX_HEADERS};

/// As many cases as `PROPTEST_CASES` asks for, and `cases` without being asked.
fn at_least(cases: u32) -> ProptestConfig {
    let config = ProptestConfig::default();
    ProptestConfig {
        cases: config.cases.max(cases),
        ..config
    }
}

proptest! {
    #![proptest_config(at_least(5000))]

    #[test]
    fn a_packet_is_parsed_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        if let Ok((headers, payload)) = Headers::parse(&bytes) {
            let mut out = [0xA5; MAX_HEADERS];
            let len = headers.emit(&mut out);
            prop_assert_eq!(len, headers.len());
            let pad = usize::from(headers.bth.pad);
            prop_assert_eq!(len + payload.len() + pad + ICRC_LEN, bytes.len());
            let again = [&out[..len], &bytes[len..]].concat();
            prop_assert_eq!(Headers::parse(&again), Ok((headers, payload)));
            let line = Line::new(headers, payload).to_string();
            prop_assert!(!line.contains('\n'));
        }
    }

    #[test]
    fn a_management_datagram_is_parsed_or_refused(
        attribute in 0x0F..0x1Cu8,
        mut bytes in proptest::collection::vec(any::<u8>(), MAD_LEN..MAD_LEN + 9),
    ) {
        let _ = Message::parse(&bytes);
        bytes[..4].copy_from_slice(&[1, 7, 2, 3]);
        bytes[16..18].copy_from_slice(&[0, attribute]);
        let parsed = Message::parse(&bytes);
        prop_assert_eq!(parsed.is_ok(), (0x10..0x19).contains(&attribute));
        if let Ok((transaction, message)) = parsed {
            let mut out = [0xA5; MAD_LEN];
            message.emit(transaction, &mut out);
            prop_assert_eq!(Message::parse(&out), Ok((transaction, message)));
        }
    }

    #[test]
    fn greetings_and_addressing_are_parsed_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let _ = Hello::parse(&bytes);
        if let Ok((grh, _)) = Grh::parse(&bytes) {
            let mut out = [0xA5; Grh::LEN];
            grh.emit(&mut out);
            prop_assert_eq!(Grh::parse(&out), Ok((grh, &[][..])));
        }
    }
}
