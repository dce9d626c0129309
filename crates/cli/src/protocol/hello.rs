//! The private data of a connection request: who wants what.
//!
//! ```text
//! "ringmail"  service (2)  version (2)  token (16)
//! ```
//!
//! A provider may deliver it with zeros behind.

use super::Malformed;
use super::fields::Fields;

/// What a client wants, and that it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Which service.
    pub(crate) service: Service,
    /// The version of its protocol.
    pub(crate) version: u16,
    /// What a private server wants to see; zeros for others.
    pub(crate) token: Token,
}

/// The services of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// `ringmail serve`.
    Files,
    /// `ringmail ping`.
    Ping,
    /// `ringmail perf`.
    Perf,
}

/// Proves that a client was started by the server's own parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Token(pub(crate) [u8; 16]);

impl Hello {
    /// Bytes of the private data.
    pub(crate) const LEN: usize = 28;

    /// A hello of this program's version.
    pub(crate) fn new(service: Service, token: Token) -> Self {
        Self {
            service,
            version: VERSION,
            token,
        }
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..10].copy_from_slice(&self.service.code().to_be_bytes());
        bytes[10..12].copy_from_slice(&self.version.to_be_bytes());
        bytes[12..].copy_from_slice(&self.token.0);
        bytes
    }

    /// Reads a hello and checks that it asks for `service` in our version with `token`.
    ///
    /// # Errors
    /// The reason to reject, for the peer.
    pub(crate) fn check(bytes: &[u8], service: Service, token: Token) -> Result<(), &'static str> {
        let hello = Self::parse(bytes).map_err(|_| "this is ringmail, and you are not")?;
        if hello.service != service {
            return Err("another ringmail service listens here");
        }
        if hello.version != VERSION {
            return Err("the two ringmail programs are of different versions");
        }
        if hello.token != token {
            return Err("this is a private transfer");
        }
        Ok(())
    }

    fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut fields = Fields(bytes);
        if fields.bytes(8)? != MAGIC {
            return Err(Malformed("no hello"));
        }
        let service = Service::from_code(fields.u16()?).ok_or(Malformed("an unknown service"))?;
        let version = fields.u16()?;
        let mut token = Token::default();
        token.0.copy_from_slice(fields.bytes(16)?);
        Ok(Self {
            service,
            version,
            token,
        })
    }
}

impl Service {
    const fn code(self) -> u16 {
        match self {
            Self::Files => 1,
            Self::Ping => 2,
            Self::Perf => 3,
        }
    }

    const fn from_code(code: u16) -> Option<Self> {
        match code {
            1 => Some(Self::Files),
            2 => Some(Self::Ping),
            3 => Some(Self::Perf),
            _ => None,
        }
    }
}

impl Token {
    /// One that nobody guesses.
    pub(crate) fn random() -> Self {
        let mut token = Self::default();
        getrandom::fill(&mut token.0).expect("the system has random numbers");
        token
    }

    /// As 32 hexadecimal digits.
    pub(crate) fn to_hex(self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Reads what [`Token::to_hex`] wrote.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let number = u128::from_str_radix(text, 16).ok()?;
        (text.len() == 32).then(|| Self(number.to_be_bytes()))
    }
}

const MAGIC: &[u8; 8] = b"ringmail";
const VERSION: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_survives_the_zeros_behind_it() {
        let token = Token::random();
        let mut bytes = Hello::new(Service::Files, token).to_bytes().to_vec();
        bytes.extend([0; 20]);
        assert_eq!(Hello::check(&bytes, Service::Files, token), Ok(()));
    }

    #[test]
    fn a_wrong_hello_is_told_why() {
        let token = Token::random();
        let hello = Hello::new(Service::Files, token);
        let refused = |hello: Hello| Hello::check(&hello.to_bytes(), Service::Files, token);
        let other = Hello {
            service: Service::Ping,
            ..hello
        };
        assert!(refused(other).unwrap_err().contains("another"));
        let newer = Hello {
            version: VERSION + 1,
            ..hello
        };
        assert!(refused(newer).unwrap_err().contains("versions"));
        let stranger = Hello {
            token: Token::default(),
            ..hello
        };
        assert!(refused(stranger).unwrap_err().contains("private"));
        for len in 0..Hello::LEN {
            assert!(Hello::check(&hello.to_bytes()[..len], Service::Files, token).is_err());
        }
    }

    #[test]
    fn a_token_is_written_and_read_in_hexadecimal() {
        let token = Token::random();
        assert_eq!(Token::from_hex(&token.to_hex()), Some(token));
        assert_eq!(Token::from_hex("12"), None);
        assert_eq!(Token::from_hex(&"g".repeat(32)), None);
    }
}
