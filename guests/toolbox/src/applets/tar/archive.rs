//! The tar format: headers out of and into 512 bytes. Reads ustar, GNU's long names and pax; writes ustar and GNU's.

const BLOCK: usize = 512;
/// Longest name, link or pax header that is believed.
const LONG: u64 = 64 << 10;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    File,
    Directory,
    Link(String),
    Hard(String),
    Other(char),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub name: String,
    pub what: What,
    pub mode: u32,
    pub size: u64,
    /// Seconds since 1970.
    pub modified: u64,
}

/// What some bytes of an archive were.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// Not enough yet, or padding.
    More,
    Entry(Entry),
    Data(&'a [u8]),
    EntryEnd,
    ArchiveEnd,
}

/// Takes an archive apart, whatever the pieces it comes in.
#[derive(Default)]
pub struct Reader {
    block: Vec<u8>,
    state: State,
    /// What an extra entry said about the next one.
    extra: Extra,
}

#[derive(Default)]
enum State {
    #[default]
    Header,
    Data {
        left: u64,
        padding: usize,
    },
    EntryEnd {
        padding: usize,
    },
    Padding(usize),
    /// An entry about the next one.
    Extra {
        kind: u8,
        left: u64,
        padding: usize,
        text: Vec<u8>,
    },
}

#[derive(Default)]
struct Extra {
    name: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

/// Zeros up to the next block.
pub fn padding(size: u64) -> usize {
    (BLOCK - (size % BLOCK as u64) as usize) % BLOCK
}

impl Reader {
    /// Whether an entry has begun and not ended.
    pub fn inside(&self) -> bool {
        !matches!(self.state, State::Header) || !self.block.is_empty()
    }

    /// How many bytes were used, and what they were.
    pub fn read<'a>(&mut self, bytes: &'a [u8]) -> Result<(usize, Step<'a>), String> {
        match &mut self.state {
            State::Header => {
                let count = bytes.len().min(BLOCK - self.block.len());
                self.block.extend_from_slice(&bytes[..count]);
                if self.block.len() < BLOCK {
                    return Ok((count, Step::More));
                }
                let block = std::mem::take(&mut self.block);
                self.header(&block).map(|step| (count, step))
            }
            State::Data { left, padding } => {
                let count = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= count as u64;
                if *left == 0 {
                    self.state = State::EntryEnd { padding: *padding };
                }
                Ok((count, Step::Data(&bytes[..count])))
            }
            State::EntryEnd { padding } => {
                self.state = State::Padding(*padding);
                Ok((0, Step::EntryEnd))
            }
            State::Padding(left) => {
                let count = bytes.len().min(*left);
                *left -= count;
                if *left == 0 {
                    self.state = State::Header;
                }
                Ok((count, Step::More))
            }
            State::Extra {
                kind,
                left,
                padding,
                text,
            } => {
                let count = bytes
                    .len()
                    .min(usize::try_from(*left).unwrap_or(usize::MAX));
                text.extend_from_slice(&bytes[..count]);
                *left -= count as u64;
                if *left == 0 {
                    let (kind, padding, text) = (*kind, *padding, std::mem::take(text));
                    self.state = State::Padding(padding);
                    self.note(kind, &text);
                }
                Ok((count, Step::More))
            }
        }
    }

    fn header(&mut self, block: &[u8]) -> Result<Step<'static>, String> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(Step::ArchiveEnd);
        }
        let told = number(&block[148..156]).ok_or("invalid tar header")?;
        let sum: u64 = block
            .iter()
            .enumerate()
            .map(|(at, b)| {
                if (148..156).contains(&at) {
                    32
                } else {
                    u64::from(*b)
                }
            })
            .sum();
        if told != sum {
            return Err("invalid tar header checksum: is this a tar archive?".to_owned());
        }
        let invalid = "invalid number in a tar header";
        let kind = block[156];
        let size = number(&block[124..136]).ok_or(invalid)?;
        if matches!(kind, b'L' | b'K' | b'x' | b'g') {
            if size > LONG {
                return Err("a name in the archive is too long".to_owned());
            }
            let padding = padding(size);
            self.state = match size {
                0 => State::Header,
                left => State::Extra {
                    kind,
                    left,
                    padding,
                    text: Vec::new(),
                },
            };
            return Ok(Step::More);
        }
        let extra = std::mem::take(&mut self.extra);
        let size = extra.size.unwrap_or(size);
        let mut name = text(&block[..100]);
        let prefix = text(&block[345..500]);
        if block[257..262] == *b"ustar" && block[262] == 0 && !prefix.is_empty() {
            name = format!("{prefix}/{name}");
        }
        let name = extra.name.unwrap_or(name);
        let link = extra.link.unwrap_or_else(|| text(&block[157..257]));
        let what = match kind {
            b'0' | 0 | b'7' if name.ends_with('/') => What::Directory,
            b'0' | 0 | b'7' => What::File,
            b'1' => What::Hard(link),
            b'2' => What::Link(link),
            b'5' => What::Directory,
            other => What::Other(char::from(other)),
        };
        // Only files have bytes, whatever the others say.
        let left = if matches!(what, What::File | What::Other(_)) {
            size
        } else {
            0
        };
        let padding = padding(left);
        self.state = match left {
            0 => State::Header,
            left => State::Data { left, padding },
        };
        Ok(Step::Entry(Entry {
            name,
            what,
            mode: number(&block[100..108]).unwrap_or(0) as u32,
            size: left,
            modified: number(&block[136..148]).unwrap_or(0),
        }))
    }

    fn note(&mut self, kind: u8, bytes: &[u8]) {
        match kind {
            b'L' => self.extra.name = Some(text(bytes)),
            b'K' => self.extra.link = Some(text(bytes)),
            b'x' => {
                for (key, value) in pax(bytes) {
                    match key.as_str() {
                        "path" => self.extra.name = Some(value),
                        "linkpath" => self.extra.link = Some(value),
                        "size" => self.extra.size = value.parse().ok(),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
}

/// Records `LENGTH KEY=VALUE\n`.
fn pax(mut bytes: &[u8]) -> Vec<(String, String)> {
    let mut records = Vec::new();
    while let Some(space) = bytes.iter().position(|b| *b == b' ') {
        let length = std::str::from_utf8(&bytes[..space])
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        let Some(length) = length.filter(|length| (space + 1..=bytes.len()).contains(length))
        else {
            break;
        };
        let record = String::from_utf8_lossy(&bytes[space + 1..length]);
        if let Some((key, value)) = record.trim_end_matches('\n').split_once('=') {
            records.push((key.to_owned(), value.to_owned()));
        }
        bytes = &bytes[length..];
    }
    records
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

/// Octal digits, or GNU's binary form for large numbers.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|first| first & 0x80 != 0) {
        return field[1..].iter().try_fold(0_u64, |value, byte| {
            value.checked_mul(256)?.checked_add(u64::from(*byte))
        });
    }
    let text = text(field);
    match text.trim() {
        "" => Some(0),
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

/// The block, or blocks, before an entry's bytes.
pub fn header(entry: &Entry) -> Vec<u8> {
    let (kind, link) = match &entry.what {
        What::Directory => (b'5', ""),
        What::Link(target) => (b'2', target.as_str()),
        What::Hard(target) => (b'1', target.as_str()),
        _ => (b'0', ""),
    };
    let mut out = Vec::new();
    for (kind, name) in [(b'L', entry.name.as_str()), (b'K', link)] {
        if name.len() > 100 {
            out.extend(block(
                "././@LongLink",
                "",
                kind,
                0,
                name.len() as u64 + 1,
                0,
            ));
            out.extend_from_slice(name.as_bytes());
            out.resize(out.len() + 1 + padding(name.len() as u64 + 1), 0);
        }
    }
    out.extend(block(
        &entry.name,
        link,
        kind,
        entry.mode,
        entry.size,
        entry.modified,
    ));
    out
}

fn block(name: &str, link: &str, kind: u8, mode: u32, size: u64, modified: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name.as_bytes()[..name.len().min(100)]);
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000\x000000000");
    match size < 1 << 33 {
        true => put(124, format!("{size:011o}").as_bytes()),
        false => {
            put(124, &[0x80]);
            put(128, &size.to_be_bytes());
        }
    }
    put(136, format!("{modified:011o}").as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link.as_bytes()[..link.len().min(100)]);
    put(257, b"ustar  \0");
    put(265, b"root");
    put(297, b"root");
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, what: What, size: u64) -> Entry {
        Entry {
            name: name.to_owned(),
            what,
            mode: 0o644,
            size,
            modified: 1_700_000_000,
        }
    }

    /// Everything read from an archive that comes in pieces of `step` bytes.
    fn read(archive: &[u8], step: usize) -> Vec<(Entry, Vec<u8>)> {
        let mut reader = Reader::default();
        let mut found: Vec<(Entry, Vec<u8>)> = Vec::new();
        for mut piece in archive.chunks(step) {
            while !piece.is_empty() {
                let (used, step) = reader.read(piece).unwrap();
                piece = &piece[used..];
                match step {
                    Step::Entry(entry) => found.push((entry, Vec::new())),
                    Step::Data(data) => found.last_mut().unwrap().1.extend_from_slice(data),
                    Step::ArchiveEnd => return found,
                    _ => {}
                }
            }
        }
        found
    }

    #[test]
    fn what_is_written_can_be_read_in_any_pieces() {
        let long = "d/".repeat(80) + "file";
        let entries = [
            (entry("dir/", What::Directory, 0), vec![]),
            (entry("dir/a", What::File, 5), b"hello".to_vec()),
            (entry(&long, What::File, 512), vec![7; 512]),
            (entry("empty", What::File, 0), vec![]),
            (entry("link", What::Link(long.clone()), 0), vec![]),
        ];
        let mut archive = Vec::new();
        for (entry, data) in &entries {
            archive.extend(header(entry));
            archive.extend_from_slice(data);
            archive.resize(archive.len() + padding(entry.size), 0);
        }
        archive.resize(archive.len() + 1_024, 0);
        for step in [1, 7, 512, 1_000, archive.len()] {
            assert_eq!(read(&archive, step), entries, "in pieces of {step}");
        }
    }

    #[test]
    fn pax_records_replace_what_the_header_says() {
        assert_eq!(
            pax(b"13 path=a/bc\n11 size=12\n"),
            [("path".into(), "a/bc".into()), ("size".into(), "12".into())]
        );
        assert_eq!(pax(b"99 path=x\n"), []);
        assert_eq!(pax(b"nonsense"), []);
    }

    #[test]
    fn what_is_no_archive_is_refused() {
        assert!(Reader::default().read(&[b'x'; 512]).is_err());
        let mut broken = header(&entry("a", What::File, 1));
        broken[0] = b'b';
        assert!(Reader::default().read(&broken).is_err());
    }
}
