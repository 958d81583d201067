//! The protobuf wire format: varints, fixed widths and length-delimited bytes. Reading checks every bound. Pure.

/// Reads the fields of one message.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

/// A field's value as it stands on the wire.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32,
}

const EOF: &str = "unexpected EOF";

// === impl Reader ===

impl<'a> Reader<'a> {
    pub(crate) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    /// The next field: its tag and value; `None` at the end.
    pub(crate) fn field(&mut self) -> Result<Option<(u32, Wire<'a>)>, String> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let key = self.varint()?;
        let tag = u32::try_from(key >> 3)
            .ok()
            .filter(|tag| *tag > 0)
            .ok_or_else(|| format!("proto: illegal tag {} (wire type {})", key >> 3, key & 7))?;
        let value = match key & 7 {
            0 => Wire::Varint(self.varint()?),
            1 => Wire::Fixed64(u64::from_le_bytes(self.array()?)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| EOF)?;
                Wire::Bytes(self.take(length)?)
            }
            5 => {
                let [_, _, _, _] = self.array()?;
                Wire::Fixed32
            }
            other => return Err(format!("proto: illegal wireType {other}")),
        };
        Ok(Some((tag, value)))
    }

    /// A bare varint; for packed lists.
    pub(crate) fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let [byte] = self.array()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err("proto: integer overflow".to_owned())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(EOF)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(EOF)?;
        self.rest = rest;
        Ok(*head)
    }
}

// === impl Wire ===

impl<'a> Wire<'a> {
    pub(crate) fn varint(self, field: &str) -> Result<u64, String> {
        match self {
            Self::Varint(value) => Ok(value),
            _ => Err(self.wrong(field)),
        }
    }

    pub(crate) fn double(self, field: &str) -> Result<f64, String> {
        match self {
            Self::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(self.wrong(field)),
        }
    }

    pub(crate) fn bytes(self, field: &str) -> Result<&'a [u8], String> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(self.wrong(field)),
        }
    }

    pub(crate) fn text(self, field: &str) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes(field)?)
            .map_err(|_| format!("proto: field {field} contains invalid UTF-8"))
    }

    fn wrong(self, field: &str) -> String {
        let wire_type = match self {
            Self::Varint(_) => 0,
            Self::Fixed64(_) => 1,
            Self::Bytes(_) => 2,
            Self::Fixed32 => 5,
        };
        format!("proto: wrong wireType = {wire_type} for field {field}")
    }
}

/// Writes the fields of one message.
#[derive(Default)]
pub(crate) struct Writer {
    out: Vec<u8>,
}

// === impl Writer ===

impl Writer {
    pub(crate) fn with_prefix(prefix: &[u8]) -> Self {
        Self {
            out: prefix.to_vec(),
        }
    }

    pub(crate) fn varint(&mut self, tag: u32, value: u64) {
        self.key(tag, 0);
        self.raw_varint(value);
    }

    pub(crate) fn double(&mut self, tag: u32, value: f64) {
        self.key(tag, 1);
        self.out.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn bytes(&mut self, tag: u32, bytes: &[u8]) {
        self.key(tag, 2);
        self.raw_varint(bytes.len() as u64);
        self.out.extend_from_slice(bytes);
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.out
    }

    fn key(&mut self, tag: u32, wire_type: u64) {
        self.raw_varint(u64::from(tag) << 3 | wire_type);
    }

    fn raw_varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }
}
