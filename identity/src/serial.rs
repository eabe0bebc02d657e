//! Certificate serial numbers (RFC 5280 section 4.1.2.2).

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::{crypto, limits};

/// A certificate's serial number: a positive number of at most 20 octets.
///
/// Ours have 18: 48 bits of milliseconds since 1970, then 96 random bits, so that
/// they sort by time and an index on them grows at its end. Equal numbers have equal
/// bytes: leading zeros are not kept.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Serial(Vec<u8>);

/// Why bytes or text are not a serial number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SerialError {
    /// The number is zero or empty.
    #[error("a serial number is positive; this one is empty or zero")]
    Zero,
    /// The number has more than 20 octets.
    #[error("a serial number has at most 20 octets; this one has {0}")]
    TooLong(usize),
    /// The text is not hexadecimal.
    #[error("a serial number is written in hexadecimal digits, two for each octet")]
    NotHex,
}

impl Serial {
    /// A fresh number for a certificate made at `now_ms`, milliseconds since 1970.
    pub fn new(now_ms: u64) -> Self {
        let mut octets = [0_u8; 18];
        // The top bit stays clear: the number is positive without a padding octet.
        let time = (now_ms & 0x7fff_ffff_ffff).to_be_bytes();
        octets[..6].copy_from_slice(&time[2..]);
        octets[6..].copy_from_slice(&crypto::random::<12>());
        Self(strip_zeros(&octets).to_vec())
    }

    /// From the number's big-endian octets, as in a certificate's INTEGER.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SerialError> {
        let magnitude = strip_zeros(bytes);
        match magnitude.len() {
            0 => Err(SerialError::Zero),
            1..=limits::SERIAL_OCTETS => Ok(Self(magnitude.to_vec())),
            long => Err(SerialError::TooLong(long)),
        }
    }

    /// The number's big-endian octets, without leading zeros.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn strip_zeros(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|octet| **octet == 0).count();
    &bytes[zeros..]
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut hex = [0; 2 * limits::SERIAL_OCTETS];
        let hex = hex.get_mut(..2 * self.0.len()).ok_or(fmt::Error)?;
        hex::encode_to_slice(&self.0, hex).map_err(|_| fmt::Error)?;
        f.write_str(str::from_utf8(hex).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Serial({self})")
    }
}

impl FromStr for Serial {
    type Err = SerialError;

    /// Hexadecimal digits of either case, with or without colons between octets.
    fn from_str(text: &str) -> Result<Self, SerialError> {
        // Three characters an octet, and one for a sign octet that some tools print.
        if text.len() > 3 * (limits::SERIAL_OCTETS + 1) {
            return Err(SerialError::TooLong(text.len() / 2));
        }
        let digits = if text.contains(':') {
            if text.split(':').any(|octet| octet.len() != 2) {
                return Err(SerialError::NotHex);
            }
            text.replace(':', "")
        } else {
            text.to_owned()
        };
        Self::from_bytes(&hex::decode(digits).map_err(|_| SerialError::NotHex)?)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    #[test]
    fn fresh_serials_have_18_octets_are_positive_and_sort_by_time() {
        let early = Serial::new(NOW_MS);
        let late = Serial::new(NOW_MS + 1);
        for serial in [&early, &late] {
            assert_eq!(serial.as_bytes().len(), 18);
            assert!((1..0x80).contains(&serial.as_bytes()[0]));
        }
        assert!(early < late);
        assert_ne!(Serial::new(NOW_MS), Serial::new(NOW_MS));
    }

    #[test]
    fn a_broken_clock_still_gives_a_usable_serial() {
        for now in [0, 1, u64::MAX, 1 << 47] {
            let serial = Serial::new(now);
            assert_eq!(Serial::from_bytes(serial.as_bytes()).unwrap(), serial);
            assert!(serial.as_bytes()[0] != 0);
        }
    }

    #[test]
    fn text_and_bytes_round_trip() {
        let serial = Serial::new(NOW_MS);
        assert_eq!(serial.to_string().parse::<Serial>().unwrap(), serial);
        assert_eq!("0A:1B".parse::<Serial>().unwrap().as_bytes(), [0x0a, 0x1b]);
        assert_eq!("00ff".parse::<Serial>().unwrap().as_bytes(), [0xff]);
        assert_eq!("00".parse::<Serial>(), Err(SerialError::Zero));
        assert_eq!("".parse::<Serial>(), Err(SerialError::Zero));
        assert_eq!("abc".parse::<Serial>(), Err(SerialError::NotHex));
        assert_eq!("a:bcd".parse::<Serial>(), Err(SerialError::NotHex));
        assert_eq!(
            "01".repeat(21).parse::<Serial>(),
            Err(SerialError::TooLong(21))
        );
        assert_eq!(Serial::from_bytes(&[1; 21]), Err(SerialError::TooLong(21)));
        assert!(Serial::from_bytes(&[1; 20]).is_ok());
    }

    proptest! {
        #[test]
        fn any_text_or_bytes_parse_or_fail(text in ".{0,80}", bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            if let Ok(serial) = text.parse::<Serial>() {
                prop_assert_eq!(serial.to_string().parse::<Serial>(), Ok(serial));
            }
            if let Ok(serial) = Serial::from_bytes(&bytes) {
                prop_assert_eq!(serial.to_string().parse::<Serial>(), Ok(serial));
            }
        }
    }
}
