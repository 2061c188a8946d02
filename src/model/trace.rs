//! Where a request belongs in a trace that spans several services.

use std::fmt;
use std::str::FromStr;

use super::InvalidName;

/// A span of another service: what its caller sends as `traceparent`
/// ([W3C Trace Context](https://www.w3.org/TR/trace-context/#traceparent-header)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceParent {
    pub trace_id: u128,
    pub span_id: u64,
    pub flags: u8,
}

impl TraceParent {
    /// The header of HTTP, and the key of gRPC's metadata.
    pub const HEADER: &str = "traceparent";
}

impl FromStr for TraceParent {
    type Err = InvalidName;

    /// A version above 00 is read as far as 00 goes, as the specification asks.
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let invalid = || InvalidName::new(text, "a traceparent");
        let (head, rest) = text.split_at_checked(55).ok_or_else(invalid)?;
        let fields: Vec<&str> = head.split('-').collect();
        let [version, trace_id, span_id, flags] = fields.as_slice() else { return Err(invalid()) };
        let well_formed = head.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-'))
            && (version.len(), trace_id.len(), span_id.len(), flags.len()) == (2, 32, 16, 2)
            && *version != "ff"
            && (rest.is_empty() || (*version != "00" && rest.starts_with('-')));
        let parsed = Self {
            trace_id: u128::from_str_radix(trace_id, 16).map_err(|_| invalid())?,
            span_id: u64::from_str_radix(span_id, 16).map_err(|_| invalid())?,
            flags: u8::from_str_radix(flags, 16).map_err(|_| invalid())?,
        };
        if well_formed && parsed.trace_id != 0 && parsed.span_id != 0 { Ok(parsed) } else { Err(invalid()) }
    }
}

impl fmt::Display for TraceParent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const EXAMPLE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn the_example_of_the_specification_is_read() {
        let parent: TraceParent = EXAMPLE.parse().unwrap();
        assert_eq!(parent.trace_id, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c);
        assert_eq!((parent.span_id, parent.flags), (0xb7ad_6b71_6920_3331, 1));
        assert_eq!(parent.to_string(), EXAMPLE);
        assert_eq!(format!("cc{}-what-comes", &EXAMPLE[2..]).parse(), Ok(parent));
    }

    #[test]
    fn what_the_specification_forbids_is_none() {
        for text in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
            "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01more",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-+1",
            "00-0af7651916cd43dd8448eb211c80319cb-7ad6b7169203331-01",
        ] {
            assert!(text.parse::<TraceParent>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_is_written_again(text in "[0-9a-f-]{50,60}", trace_id in 1..=u128::MAX, span_id in 1..=u64::MAX) {
            let parent = TraceParent { trace_id, span_id, flags: 0 };
            prop_assert_eq!(parent.to_string().parse(), Ok(parent));
            let _ = text.parse::<TraceParent>();
        }
    }
}
