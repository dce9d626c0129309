//! Two connection managers and the wire between them, in virtual time.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ringmail_roce::cm::{
    AcceptParams, Cm, CmEvent, Config, ConnectParams, End, IncomingRequest, Mad, Peer, Route,
};
use ringmail_roce::time::Instant;
use ringmail_roce::verbs::{Mtu, QpType};
use ringmail_roce::wire::cm::{CommId, Message, ServiceId};
use ringmail_roce::wire::{Psn, Qpn};

pub(crate) const SERVICE: ServiceId = ServiceId::tcp(7471);
pub(crate) const A: usize = 0;
pub(crate) const B: usize = 1;

/// What the wire does to one datagram: when its copies arrive, none if it is lost.
type Fate = Box<dyn FnMut(usize, &Message) -> Vec<Duration>>;

pub(crate) struct Pair {
    pub(crate) cm: [Cm; 2],
    pub(crate) events: [Vec<CmEvent>; 2],
    pub(crate) now: Instant,
    /// What was sent: `A:REQ`, or `A:REQ!` if it was lost.
    pub(crate) trace: Vec<String>,
    /// Both applications answer at once: they accept, establish.
    pub(crate) obliging: bool,
    fate: Fate,
    in_flight: BTreeMap<(Instant, u64), (usize, Mad)>,
    sent: u64,
}

impl Pair {
    /// Obliging applications on a wire that takes 1 ms and loses nothing; B listens on [`SERVICE`].
    pub(crate) fn new() -> Self {
        Self::with(Config::new(1), Config::new(2))
    }

    pub(crate) fn with(a: Config, b: Config) -> Self {
        let mut cm = [Cm::new(a), Cm::new(b)];
        cm[B].listen(SERVICE).expect("nobody listens yet");
        Self {
            cm,
            events: [Vec::new(), Vec::new()],
            now: Instant::ZERO,
            trace: Vec::new(),
            obliging: true,
            fate: Box::new(|_, _| vec![Duration::from_millis(1)]),
            in_flight: BTreeMap::new(),
            sent: 0,
        }
    }

    /// Loses the first `count` messages called `name`.
    pub(crate) fn losing(mut self, name: &'static str, mut count: u32) -> Self {
        self.fate = Box::new(move |_, message| {
            if message.name() == name && count > 0 {
                count -= 1;
                return Vec::new();
            }
            vec![Duration::from_millis(1)]
        });
        self
    }

    pub(crate) fn with_fate(
        mut self,
        fate: impl FnMut(usize, &Message) -> Vec<Duration> + 'static,
    ) -> Self {
        self.fate = Box::new(fate);
        self
    }

    pub(crate) fn manual(mut self) -> Self {
        self.obliging = false;
        self
    }

    pub(crate) fn connect(&mut self) -> CommId {
        self.connect_from(A)
    }

    pub(crate) fn connect_from(&mut self, side: usize) -> CommId {
        let params = connect_params(side);
        let id = self.cm[side]
            .connect(self.now, &params)
            .expect("valid parameters");
        self.flush();
        id
    }

    pub(crate) fn accept(&mut self, side: usize, id: CommId) {
        let params = AcceptParams {
            end: end(side),
            private_data: b"welcome".to_vec(),
        };
        self.cm[side]
            .accept(self.now, id, &params)
            .expect("a request");
        self.flush();
    }

    pub(crate) fn disconnect(&mut self, side: usize, id: CommId) {
        self.cm[side]
            .disconnect(self.now, id)
            .expect("a live connection");
        self.flush();
    }

    /// Lets `time` pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        self.flush();
        while let Some(at) = self.next_moment().filter(|&at| at <= end) {
            self.now = self.now.max(at);
            while let Some(entry) = self
                .in_flight
                .first_entry()
                .filter(|e| e.key().0 <= self.now)
            {
                let (to, mad) = entry.remove();
                self.cm[to].handle_mad(self.now, route(to), &mad);
                self.flush();
            }
            for side in [A, B] {
                self.cm[side].handle_timeout(self.now);
            }
            self.flush();
        }
        self.now = end;
    }

    /// Lets a second pass: enough for a few repetitions, too little for timewait to end.
    pub(crate) fn settle(&mut self) {
        self.run(Duration::from_millis(900));
    }

    fn next_moment(&self) -> Option<Instant> {
        let arrival = self.in_flight.keys().next().map(|&(at, _)| at);
        let timers = self.cm.iter().filter_map(Cm::poll_timeout);
        timers.chain(arrival).min()
    }

    /// Carries off what both sides have to say, until neither says more.
    pub(crate) fn flush(&mut self) {
        let mut quiet = false;
        while !quiet {
            quiet = true;
            for side in [A, B] {
                while let Some((way, mad)) = self.cm[side].poll_transmit() {
                    assert_eq!(way, route(side));
                    self.transmit(side, mad);
                }
                while let Some(event) = self.cm[side].poll_event() {
                    quiet = false;
                    if self.obliging {
                        self.oblige(side, &event);
                    }
                    self.events[side].push(event);
                }
            }
        }
    }

    fn transmit(&mut self, from: usize, mad: Mad) {
        let (_, message) = Message::parse(&mad).expect("well-formed");
        let arrivals = (self.fate)(from, &message);
        let lost = if arrivals.is_empty() { "!" } else { "" };
        self.trace
            .push(format!("{}:{}{lost}", ["A", "B"][from], message.name()));
        for delay in arrivals {
            self.sent += 1;
            self.in_flight
                .insert((self.now + delay, self.sent), (1 - from, mad));
        }
    }

    fn oblige(&mut self, side: usize, event: &CmEvent) {
        match event {
            CmEvent::ConnectRequest { id, .. } => {
                let params = AcceptParams {
                    end: end(side),
                    private_data: b"welcome".to_vec(),
                };
                self.cm[side]
                    .accept(self.now, *id, &params)
                    .expect("a request");
            }
            CmEvent::ConnectReply { id, .. } => {
                self.cm[side].establish(*id).expect("a reply");
            }
            _ => {}
        }
    }

    pub(crate) fn trace(&self) -> String {
        self.trace.join(" ")
    }

    /// The names of the events that one side has had.
    pub(crate) fn heard(&self, side: usize) -> Vec<String> {
        self.events[side].iter().map(name).collect()
    }

    /// The connection that the last request to `side` is about.
    pub(crate) fn requested(&self, side: usize) -> (CommId, &IncomingRequest) {
        let request = |event: &'_ CmEvent| matches!(event, CmEvent::ConnectRequest { .. });
        match self.events[side].iter().rfind(|event| request(event)) {
            Some(CmEvent::ConnectRequest { id, request }) => (*id, request),
            _ => panic!("no request in {:?}", self.events[side]),
        }
    }

    /// The reply that `side` has had.
    pub(crate) fn replied(&self, side: usize) -> (Peer, &[u8]) {
        let reply = self.events[side].iter().find_map(|event| match event {
            CmEvent::ConnectReply {
                peer, private_data, ..
            } => Some((*peer, &private_data[..])),
            _ => None,
        });
        reply.expect("a reply")
    }
}

/// The variant's name, with the reason of failures.
pub(crate) fn name(event: &CmEvent) -> String {
    match event {
        CmEvent::Rejected { reason, .. } => format!("Rejected({reason:?})"),
        CmEvent::Failed { why, .. } => format!("Failed({why:?})"),
        other => {
            let text = format!("{other:?}");
            text[..text.find(' ').expect("all variants have fields")].to_owned()
        }
    }
}

pub(crate) fn address(side: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, side as u8 + 1])
}

/// As seen from `side`.
pub(crate) fn route(side: usize) -> Route {
    Route {
        local: address(side),
        remote: address(1 - side),
    }
}

pub(crate) fn end(side: usize) -> End {
    End {
        qpn: Qpn::new(0x100 + side as u32),
        psn: Psn::new(0x1000 + side as u32),
        responder_resources: 4,
        initiator_depth: 8,
        rnr_retry_count: 7,
        srq: false,
    }
}

pub(crate) fn connect_params(side: usize) -> ConnectParams {
    ConnectParams {
        route: route(side),
        service: SERVICE,
        source_port: 40_000,
        end: end(side),
        transport: QpType::Rc,
        path_mtu: Mtu::B4096,
        retry_count: 7,
        ack_timeout: 14,
        private_data: b"hello".to_vec(),
    }
}
