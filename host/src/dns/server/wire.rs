//! DNS messages: what may be asked here, and how an answer goes onto the wire. PURE.

use hickory_proto::ProtoError;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};

/// What we send and take in one datagram: below every path's MTU.
pub(crate) const PAYLOAD: u16 = 1232;
/// Without EDNS.
const SMALLEST: u16 = 512;
const HEADER: usize = 12;
/// No record is shorter.
const RECORD: usize = 12;

/// How a message came, and so how long its answer may be.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    Datagram,
    Stream,
}

/// A question that is answered, one way or the other.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    metadata: Metadata,
    query: Query,
    edns: Option<Edns>,
    transport: Transport,
}

/// What is not a question for us: the answer to it, when it gets one.
#[derive(Debug)]
pub(crate) struct Rejected(pub(crate) Option<(ResponseCode, Vec<u8>)>);

/// What is put under a question.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reply {
    pub(crate) code: ResponseCode,
    /// Our own zone says so.
    pub(crate) authoritative: bool,
    pub(crate) answers: Vec<Record>,
    pub(crate) authorities: Vec<Record>,
    pub(crate) additionals: Vec<Record>,
}

/// Bytes of an answer, and whether something had to be left out.
pub(crate) struct Written {
    pub(crate) bytes: Vec<u8>,
    pub(crate) truncated: bool,
}

/// One question of class IN, which is no zone transfer. Answers get no answer: two servers would go on for ever.
pub(crate) fn read(bytes: &[u8], transport: Transport) -> Result<Question, Rejected> {
    let Some(&[id_high, id_low, flags, ..]) = bytes.get(..HEADER) else {
        return Err(Rejected(None));
    };
    if flags & 0x80 != 0 {
        return Err(Rejected(None));
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let bare = |code| Rejected(error(Message::error_msg(id, op_code, code)));
    if op_code != OpCode::Query {
        return Err(bare(ResponseCode::NotImp));
    }
    let Ok(mut message) = Message::from_vec(bytes) else {
        return Err(bare(ResponseCode::FormErr));
    };
    let (Some(query), true) = (message.queries.pop(), message.queries.is_empty()) else {
        return Err(bare(ResponseCode::FormErr));
    };
    let question = Question {
        metadata: message.metadata,
        query,
        edns: message.edns,
        transport,
    };
    let refused = |code| Err(Rejected(error(question.message(Reply::of(code)))));
    if question
        .edns
        .as_ref()
        .is_some_and(|edns| edns.version() > 0)
    {
        return refused(ResponseCode::BADVERS);
    }
    let kind = question.kind();
    let transfer = matches!(kind, RecordType::AXFR | RecordType::IXFR);
    if question.query.query_class() != DNSClass::IN || transfer {
        return refused(ResponseCode::Refused);
    }
    if matches!(kind, RecordType::OPT | RecordType::TSIG | RecordType::ZERO) {
        return refused(ResponseCode::FormErr);
    }
    Ok(question)
}

fn error(message: Message) -> Option<(ResponseCode, Vec<u8>)> {
    let code = message.metadata.response_code;
    Some((code, message.to_vec().ok()?))
}

/// Lower case, without the final dot. What no name of ours has becomes a character that none of ours has either.
pub(crate) fn plain(name: &Name) -> String {
    let mut plain = String::with_capacity(name.len());
    for label in name.iter() {
        if !plain.is_empty() {
            plain.push('.');
        }
        plain.extend(label.iter().map(|byte| match byte {
            b'.' | 0x80.. => '\0',
            byte => char::from(byte.to_ascii_lowercase()),
        }));
    }
    plain
}

// === impl Question ===

impl Question {
    pub(crate) fn query(&self) -> &Query {
        &self.query
    }

    /// As it was asked: in whatever case.
    pub(crate) fn name(&self) -> &Name {
        self.query.name()
    }

    pub(crate) fn kind(&self) -> RecordType {
        self.query.query_type()
    }

    pub(crate) fn dnssec_ok(&self) -> bool {
        self.edns
            .as_ref()
            .is_some_and(|edns| edns.flags().dnssec_ok)
    }

    pub(crate) fn checking_disabled(&self) -> bool {
        self.metadata.checking_disabled
    }

    /// The answer as the client can take it. What does not fit is left out: first what it did not ask for, then
    /// answers, and that is said, so that it asks again over TCP.
    pub(crate) fn write(&self, reply: Reply) -> Written {
        let mut message = self.message(reply);
        let limit = usize::from(self.limit());
        if message.answers.len() > limit / RECORD {
            // Hopeless: nobody should make us encode thousands of records for a datagram.
            message.answers.truncate(limit / RECORD);
            message.metadata.truncation = true;
        } else if let Some(bytes) = fitting(&message, limit) {
            return written(bytes, false);
        }
        message.additionals.clear();
        if !message.metadata.truncation
            && let Some(bytes) = fitting(&message, limit)
        {
            return written(bytes, false);
        }
        message.metadata.truncation = true;
        message.authorities.clear();
        let answers = std::mem::take(&mut message.answers);
        let (mut low, mut high) = (0, answers.len());
        let mut best = fitting(&message, limit);
        while low < high {
            let middle = low + (high - low).div_ceil(2);
            message.answers = answers[..middle].to_vec();
            match fitting(&message, limit) {
                Some(bytes) => {
                    best = Some(bytes);
                    low = middle;
                }
                None => high = middle - 1,
            }
        }
        written(best.unwrap_or_default(), true)
    }

    fn limit(&self) -> u16 {
        match (self.transport, &self.edns) {
            (Transport::Stream, _) => u16::MAX,
            (Transport::Datagram, None) => SMALLEST,
            (Transport::Datagram, Some(edns)) => edns.max_payload().clamp(SMALLEST, PAYLOAD),
        }
    }

    fn message(&self, reply: Reply) -> Message {
        let mut message = Message::new(self.metadata.id, MessageType::Response, OpCode::Query);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.authoritative = reply.authoritative;
        message.metadata.response_code = reply.code;
        message.queries = vec![self.query.clone()];
        message.answers = reply.answers;
        message.authorities = reply.authorities;
        message.additionals = reply.additionals;
        message.edns = self.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(PAYLOAD);
            edns.set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        message
    }
}

fn fitting(message: &Message, limit: usize) -> Option<Vec<u8>> {
    let encoded: Result<Vec<u8>, ProtoError> = message.to_vec();
    encoded.ok().filter(|bytes| bytes.len() <= limit)
}

fn written(bytes: Vec<u8>, truncated: bool) -> Written {
    Written { bytes, truncated }
}

// === impl Reply ===

impl Reply {
    pub(crate) fn of(code: ResponseCode) -> Self {
        Self {
            code,
            ..Self::default()
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::Ipv4Addr;

    use hickory_proto::rr::RData;
    use hickory_proto::rr::rdata::A;

    use super::*;

    pub(crate) fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::query();
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    fn code(message: &[u8]) -> Option<ResponseCode> {
        let rejected = read(message, Transport::Datagram).expect_err("rejected");
        rejected.0.map(|(code, _)| code)
    }

    #[test]
    fn what_is_no_question_is_rejected() {
        assert_eq!(code(b"short"), None);
        assert_eq!(code(&[0xff; 64]), None, "an answer");
        assert_eq!(code(&[0; 12]), Some(ResponseCode::FormErr), "no question");
        assert_eq!(code(&[0x0f; 64]), Some(ResponseCode::NotImp));
        let mut garbage = [0x00; 40];
        garbage[5] = 1;
        garbage[12..].fill(0xff);
        assert_eq!(code(&garbage), Some(ResponseCode::FormErr));
        let with = |change: fn(&mut Message)| {
            let mut message = query("a.b.", RecordType::A);
            change(&mut message);
            code(&message.to_vec().unwrap())
        };
        assert_eq!(
            with(|m| m.metadata.op_code = OpCode::Update),
            Some(ResponseCode::NotImp)
        );
        assert_eq!(
            with(|m| {
                m.queries[0].set_query_class(DNSClass::CH);
            }),
            Some(ResponseCode::Refused)
        );
        for kind in [RecordType::AXFR, RecordType::IXFR] {
            let message = query("cluster.local.", kind).to_vec().unwrap();
            assert_eq!(code(&message), Some(ResponseCode::Refused), "{kind}");
        }
        assert_eq!(
            with(|m| {
                let second = m.queries[0].clone();
                m.add_query(second);
            }),
            Some(ResponseCode::FormErr)
        );
        assert_eq!(
            with(|m| {
                m.set_edns({
                    let mut edns = Edns::new();
                    edns.set_version(1);
                    edns
                });
            }),
            Some(ResponseCode::BADVERS)
        );
    }

    fn addresses(count: u8) -> Reply {
        let name = Name::from_ascii("web.shop.svc.cluster.local.").unwrap();
        let record =
            |last| Record::from_rdata(name.clone(), 5, RData::A(A(Ipv4Addr::new(1, 2, 3, last))));
        Reply {
            answers: (0..count).map(record).collect(),
            additionals: (0..count).map(record).collect(),
            ..Reply::default()
        }
    }

    fn ask(payload: Option<u16>, transport: Transport, count: u8) -> (usize, Message) {
        let mut message = query("WEB.shop.svc.cluster.local.", RecordType::A);
        message.edns = payload.map(|payload| {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            edns
        });
        let question = read(&message.to_vec().unwrap(), transport).unwrap();
        let bytes = question.write(addresses(count)).bytes;
        let answer = Message::from_vec(&bytes).unwrap();
        assert_eq!(answer.metadata.id, message.metadata.id);
        assert!(
            answer.queries[0].name().eq_case(message.queries[0].name()),
            "as it was asked"
        );
        assert_eq!(answer.edns.is_some(), payload.is_some());
        (bytes.len(), answer)
    }

    #[test]
    fn an_answer_is_as_long_as_the_client_can_take() {
        let (length, whole) = ask(None, Transport::Datagram, 10);
        assert!(length <= 512 && !whole.metadata.truncation);
        assert_eq!((whole.answers.len(), whole.additionals.len()), (10, 10));
        let (_, without) = ask(None, Transport::Datagram, 20);
        assert!(
            !without.metadata.truncation,
            "the additional ones were not asked for"
        );
        assert_eq!((without.answers.len(), without.additionals.len()), (20, 0));
        let (length, cut) = ask(None, Transport::Datagram, 100);
        assert!(cut.metadata.truncation && length <= 512);
        assert!(
            length > 490 && cut.answers.len() > 25,
            "as many as fit: {length}"
        );
        let (length, more) = ask(Some(65_000), Transport::Datagram, 100);
        assert!(more.metadata.truncation && length <= usize::from(PAYLOAD) && length > 1200);
        let (_, small) = ask(Some(1), Transport::Datagram, 100);
        assert_eq!(
            small.answers.len(),
            cut.answers.len() - 1,
            "room for EDNS itself"
        );
        let (_, stream) = ask(None, Transport::Stream, 200);
        assert!(!stream.metadata.truncation);
        assert_eq!(stream.answers.len(), 200);
    }

    #[test]
    fn strange_names_meet_none_of_ours() {
        let name = Name::from_labels(vec![&b"A.b"[..], &b"\xc3\xa4"[..], &b"Local"[..]]).unwrap();
        assert_eq!(plain(&name), "a\0b.\0\0.local");
        assert_eq!(plain(&Name::root()), "");
    }
}
