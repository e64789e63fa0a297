//! Our answers, round trip: records of any message that another library reads, written by us, say the same to it.
#![no_main]

use dns::name::Qname;
use dns::wire::{Head, IN, Question, Records, Response, Section};
use hickory_proto::op::{Message, OpCode};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = Message::from_vec(bytes) else { return };
    // Records of updates may have no data; the forwarder takes none of them.
    if message.metadata.op_code != OpCode::Query {
        return;
    }
    let Some(name) = message.queries.first().and_then(|query| Qname::from_name(&query.name)) else { return };
    let question = Question::new(&name, 1, IN);
    let sections = [
        (Section::Answer, &message.answers),
        (Section::Authority, &message.authorities),
        (Section::Additional, &message.additionals),
    ];
    let mut records = Records::default();
    for (section, all) in sections {
        all.iter().for_each(|record| records.add(section, record));
    }
    let mut out = Response::default();
    out.begin(&question);
    for (section, _) in sections {
        out.extend(&records, section, |ttl| ttl);
    }
    let head = Head { code: 0, authoritative: false, authentic: false };
    let written = out.finish(&question, head, 65_535).to_vec();
    // What has been written is read back, and comes out the same the second time.
    let Ok(read) = Message::from_vec(&written) else { panic!("unreadable: {written:?}") };
    if read.metadata.truncation {
        return;
    }
    assert_eq!(read.answers.len(), message.answers.len());
    for (ours, theirs) in read.answers.iter().zip(&message.answers) {
        assert!(ours.name.to_lowercase() == theirs.name.to_lowercase() && ours.data == theirs.data);
    }
});
