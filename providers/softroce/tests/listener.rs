//! Listeners and peers that ask faster than the program answers.

use std::time::{Duration, Instant};

use fabric::{Address, EndpointKind, Error, Event, Registry};
use ringmail_softroce::Softroce;

const SOON: Duration = Duration::from_secs(20);

#[test]
fn requests_that_nobody_answers_are_limited_and_room_is_made_by_answering() {
    let registry = Registry::new().with(Softroce::new());
    let open = || registry.open("softroce", &registry.defaults()).unwrap();
    let (passive, active) = (open(), open());
    let listener = passive.listen(Address::ANY).unwrap();
    let cq = active.completion_queue(16).unwrap();
    let ask = |private_data: &[u8]| {
        let endpoint = active.endpoint(EndpointKind::Msg, &cq).open().unwrap();
        endpoint
            .start_connect(&listener.address(), private_data)
            .unwrap();
        endpoint
    };
    // Without a limit none of them would ever be refused.
    let mut asking = Vec::new();
    let give_up = Instant::now() + SOON;
    let refused = loop {
        asking.push(ask(b"early"));
        let refused = asking.iter().any(|endpoint| {
            matches!(
                endpoint.wait_connected(Duration::ZERO),
                Err(Error::Rejected { .. })
            )
        });
        if refused || asking.len() == 400 || Instant::now() > give_up {
            break refused;
        }
    };
    assert!(refused, "{} wait", asking.len());
    while let Ok(request) = listener.next(Duration::ZERO) {
        drop(request);
    }
    // There is room again. Early requests may still be on their way.
    let late = ask(b"late");
    let request = loop {
        let request = listener.next(SOON).expect("the request is heard");
        if request.private_data().starts_with(b"late") {
            break request;
        }
    };
    let inbound_cq = passive.completion_queue(16).unwrap();
    let inbound = passive
        .endpoint(EndpointKind::Msg, &inbound_cq)
        .open()
        .unwrap();
    request.accept(&inbound, b"").unwrap();
    late.wait_connected(SOON).unwrap();
    assert!(!matches!(
        inbound.events().poll(),
        Some(Event::Disconnected { .. })
    ));
}
