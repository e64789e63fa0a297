//! Changes that the kernel commits together or not at all.

use std::io;

use crate::encode::{self, OBJECT_COUNTER, attr};
use crate::error::{Error, Refusal, Subject};
use crate::model::{Chain, Element, Object, Set, Table, TableName, Type, Value};
use crate::rule::Rule;
use crate::socket::{Socket, errno};
use crate::uapi;
use crate::wire::{Attrs, Buffer, HEADER, Message};

/// Attribute lengths have 16 bits; lists are split well before.
const SPLIT: usize = 48 << 10;
const REQUEST: u16 = libc::NLM_F_REQUEST as u16;
const CREATE: u16 = REQUEST | libc::NLM_F_CREATE as u16;
const APPEND: u16 = CREATE | libc::NLM_F_APPEND as u16;
const ACK: u16 = libc::NLM_F_ACK as u16;
/// Where the list of elements lies in a message.
const ELEMENTS: u16 = 3;

/// What a message is about, to name it when the kernel refuses it.
#[derive(Debug, Clone)]
struct Span {
    start: usize,
    object: String,
    /// The chain that it, or its rule, is about.
    chain: Option<String>,
    /// The set whose elements it lists.
    set: Option<String>,
    /// Types of the keys in a message of elements.
    fields: Vec<Type>,
}

/// A list of changes, in order; [`Batch::apply`] commits all or none.
///
/// Later changes see earlier ones: a chain must be added before a rule or an element refers to it, and is deleted
/// after the last that does.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    buffer: Buffer,
    spans: Vec<Span>,
    sets: u32,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// True when there is nothing to commit.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Bytes of the batch on the wire.
    pub fn size(&self) -> usize {
        self.buffer.bytes.len()
    }

    fn push(
        &mut self,
        kind: libc::c_int,
        flags: u16,
        table: &TableName,
        object: String,
        fill: impl FnOnce(&mut Buffer),
    ) {
        // Sequence numbers: 0 opens the batch, message i has i + 1.
        let seq = self.spans.len() as u32 + 1;
        let kind = ((libc::NFNL_SUBSYS_NFTABLES as u16) << 8) | kind as u16;
        let start = self.buffer.message(kind, flags, seq, table.family.number(), 0);
        // The table's name is attribute 1 of every message.
        self.buffer.str(uapi::TABLE_NAME, &table.name);
        fill(&mut self.buffer);
        self.buffer.end_message(start);
        self.spans.push(Span { start, object, chain: None, set: None, fields: Vec::new() });
    }

    /// Makes a table if it is not there, without its contents.
    pub fn ensure_table(&mut self, table: &TableName) {
        self.push(libc::NFT_MSG_NEWTABLE, CREATE, table, format!("table {table}"), |b| {
            b.u32(uapi::TABLE_FLAGS, 0);
        });
    }

    /// Deletes a table with all that is in it, whether or not it is there.
    pub fn delete_table(&mut self, table: &TableName) {
        self.ensure_table(table);
        self.push(libc::NFT_MSG_DELTABLE, REQUEST, table, format!("table {table}"), |_| {});
    }

    /// Adds a table with all its contents.
    pub fn add_table(&mut self, table: &Table) {
        let name = &table.name;
        self.ensure_table(name);
        table.objects.iter().for_each(|object| self.add_object(name, object));
        table.chains.iter().for_each(|chain| self.add_chain(name, chain));
        table.sets.iter().for_each(|set| self.add_set(name, set));
        table.sets.iter().for_each(|set| self.add_elements(name, &set.name, &set.elements));
        for chain in &table.chains {
            chain.rules.iter().for_each(|rule| self.add_rule(name, &chain.name, rule));
        }
    }

    /// Puts a table in the place of the one of the same name, whatever that holds; packets see the old or the new.
    pub fn replace_table(&mut self, table: &Table) {
        self.delete_table(&table.name);
        self.add_table(table);
    }

    /// Adds a named counter.
    pub fn add_object(&mut self, table: &TableName, object: &Object) {
        let what = format!("counter {table} {}", object.name);
        self.push(libc::NFT_MSG_NEWOBJ, CREATE, table, what, |b| {
            b.str(attr::OBJ_NAME, &object.name);
            b.u32(attr::OBJ_TYPE, OBJECT_COUNTER);
            b.nest(attr::OBJ_DATA, |b| {
                b.u64(uapi::COUNTER_BYTES, 0);
                b.u64(uapi::COUNTER_PACKETS, 0);
            });
        });
    }

    /// Deletes a named counter that nothing refers to.
    pub fn delete_object(&mut self, table: &TableName, name: &str) {
        debug_assert_eq!(attr::OBJ_TABLE, uapi::TABLE_NAME);
        self.push(libc::NFT_MSG_DELOBJ, REQUEST, table, format!("counter {table} {name}"), |b| {
            b.str(attr::OBJ_NAME, name);
            b.u32(attr::OBJ_TYPE, OBJECT_COUNTER);
        });
    }

    /// Adds a chain without its rules.
    pub fn add_chain(&mut self, table: &TableName, chain: &Chain) {
        let what = format!("chain {table} {}", chain.name);
        self.push(libc::NFT_MSG_NEWCHAIN, CREATE, table, what, |b| {
            b.str(uapi::CHAIN_NAME, &chain.name);
            if let Some(base) = &chain.base {
                encode::hook(b, base);
            }
        });
        self.about_chain(&chain.name);
    }

    fn about_chain(&mut self, name: &str) {
        if let Some(span) = self.spans.last_mut() {
            span.chain = Some(name.to_owned());
        }
    }

    /// Adds a chain with its rules.
    pub fn add_chain_with_rules(&mut self, table: &TableName, chain: &Chain) {
        self.add_chain(table, chain);
        chain.rules.iter().for_each(|rule| self.add_rule(table, &chain.name, rule));
    }

    /// Deletes a chain and its rules; nothing may refer to it.
    pub fn delete_chain(&mut self, table: &TableName, name: &str) {
        self.flush_chain(table, name);
        self.push(libc::NFT_MSG_DELCHAIN, REQUEST, table, format!("chain {table} {name}"), |b| {
            b.str(uapi::CHAIN_NAME, name);
        });
    }

    /// Deletes the rules of a chain.
    pub fn flush_chain(&mut self, table: &TableName, name: &str) {
        self.push(libc::NFT_MSG_DELRULE, REQUEST, table, format!("chain {table} {name}"), |b| {
            b.str(uapi::RULE_CHAIN, name);
        });
    }

    /// Puts other rules in the place of a chain's rules.
    pub fn replace_rules(&mut self, table: &TableName, chain: &Chain) {
        self.flush_chain(table, &chain.name);
        chain.rules.iter().for_each(|rule| self.add_rule(table, &chain.name, rule));
    }

    /// Adds a rule at the end of a chain.
    pub fn add_rule(&mut self, table: &TableName, chain: &str, rule: &Rule) {
        let what = format!("rule {table} {chain}: {rule}");
        self.push(libc::NFT_MSG_NEWRULE, APPEND, table, what, |b| {
            b.str(uapi::RULE_CHAIN, chain);
            encode::rule(b, table.family, rule);
        });
        self.about_chain(chain);
    }

    /// Adds a set or a map without its elements.
    pub fn add_set(&mut self, table: &TableName, set: &Set) {
        self.sets += 1;
        let (id, what) = (self.sets, format!("set {table} {}", set.name));
        self.push(libc::NFT_MSG_NEWSET, CREATE, table, what, |b| encode::set(b, set, id));
    }

    /// Deletes a set or a map that no rule refers to.
    pub fn delete_set(&mut self, table: &TableName, name: &str) {
        self.push(libc::NFT_MSG_DELSET, REQUEST, table, format!("set {table} {name}"), |b| {
            b.str(uapi::SET_NAME, name);
        });
    }

    /// Deletes all elements of a set or a map.
    pub fn flush_set(&mut self, table: &TableName, name: &str) {
        self.push(libc::NFT_MSG_DELSETELEM, REQUEST, table, format!("set {table} {name}"), |b| {
            b.str(uapi::SET_ELEM_LIST_SET, name);
        });
    }

    /// Adds elements. One that is there already must have the same data; to change it, delete and add it in one batch.
    pub fn add_elements<'a>(
        &mut self,
        table: &TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.elements(libc::NFT_MSG_NEWSETELEM, CREATE, table, set, elements);
    }

    /// Deletes elements by their keys; each must be there.
    pub fn delete_elements<'a>(
        &mut self,
        table: &TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        self.elements(libc::NFT_MSG_DELSETELEM, REQUEST, table, set, elements);
    }

    fn elements<'a>(
        &mut self,
        kind: libc::c_int,
        flags: u16,
        table: &TableName,
        set: &str,
        elements: impl IntoIterator<Item = &'a Element>,
    ) {
        let with_data = kind == libc::NFT_MSG_NEWSETELEM;
        let mut elements = elements.into_iter().peekable();
        while let Some(first) = elements.peek() {
            let fields = first.key.iter().map(field_type).collect();
            self.push(kind, flags, table, format!("set {table} {set}"), |b| {
                b.str(uapi::SET_ELEM_LIST_SET, set);
                let list = b.open(ELEMENTS);
                while b.bytes.len() - list < SPLIT
                    && let Some(element) = elements.next()
                {
                    encode::element(b, element, with_data);
                }
                b.close(list);
            });
            if let Some(span) = self.spans.last_mut() {
                span.fields = fields;
                span.set = Some(set.to_owned());
            }
        }
    }

    /// Commits all changes, or none of them.
    ///
    /// # Errors
    /// [`Error::Refused`] lists every change that the kernel complained about; then nothing has changed.
    pub fn apply(&self, socket: &mut Socket) -> Result<(), Error> {
        let Some(last) = self.spans.last() else { return Ok(()) };
        let mut whole = Buffer { bytes: Vec::with_capacity(self.buffer.bytes.len() + 64) };
        let subsystem = libc::NFNL_SUBSYS_NFTABLES as u16;
        let begin = whole.message(libc::NFNL_MSG_BATCH_BEGIN as u16, REQUEST, 0, 0, subsystem);
        whole.end_message(begin);
        let shift = whole.bytes.len();
        whole.bytes.extend_from_slice(&self.buffer.bytes);
        // One answer is enough: refusals come unasked, success is told by the last message.
        let at = shift + last.start + 6;
        let flags = flags_at(&whole.bytes, at) | ACK;
        whole.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
        let end = self.spans.len() as u32 + 1;
        let done = whole.message(libc::NFNL_MSG_BATCH_END as u16, REQUEST, end, 0, subsystem);
        whole.end_message(done);
        socket.drain(|_| {})?;
        socket.send(&whole.bytes)?;
        self.verdict(socket)
    }

    fn verdict(&self, socket: &Socket) -> Result<(), Error> {
        let mut refusals = Vec::new();
        let mut acknowledged = false;
        let drained = socket.drain(|message| {
            if message.kind != libc::NLMSG_ERROR as u16 {
                return;
            }
            match errno(&message) {
                0 => acknowledged |= message.seq as usize == self.spans.len(),
                code => refusals.push(self.refusal(&message, code)),
            }
        });
        match (drained, refusals.is_empty()) {
            // So many refusals that the socket overflowed: those that came are enough.
            (Err(Error::Netlink { source, .. }), false) if source.raw_os_error() == Some(libc::ENOBUFS) => {
                Err(Error::Refused(refusals))
            }
            (Err(error), _) => Err(error),
            (Ok(()), false) => Err(Error::Refused(refusals)),
            (Ok(()), true) if acknowledged => Ok(()),
            (Ok(()), true) => Err(Error::Netlink {
                call: "commit",
                source: io::Error::other("the kernel neither took nor refused the transaction"),
            }),
        }
    }

    fn refusal(&self, message: &Message<'_>, code: i32) -> Refusal {
        const CAPPED: u16 = 0x100;
        const WITH_ATTRS: u16 = 0x200;
        const TEXT: u16 = 1;
        const OFFSET: u16 = 2;
        let index = (message.seq as usize).checked_sub(1);
        let span = index.and_then(|i| self.spans.get(i));
        let mut object = span.map_or_else(|| "the whole transaction".to_owned(), |s| s.object.clone());
        let mut text = None;
        let mut subject = span.and_then(|s| s.chain.clone()).map_or(Subject::Other, Subject::Chain);
        if message.flags & WITH_ATTRS != 0 {
            // nlmsgerr: the error, the header it answers, and, unless capped, that message itself.
            let echoed =
                message.payload.get(4..8).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes);
            let skip = if message.flags & CAPPED != 0 { HEADER } else { (echoed as usize).max(HEADER) };
            let attrs = message.payload.get(4 + skip.next_multiple_of(4)..).unwrap_or(&[]);
            text = Attrs::find(attrs, TEXT)
                .map(|t| String::from_utf8_lossy(t).trim_end_matches('\0').to_owned());
            let offset = Attrs::find(attrs, OFFSET)
                .and_then(|b| b.try_into().ok())
                .map(|b| u32::from_ne_bytes(b) as usize);
            if let (Some(span), Some(offset)) = (span, offset)
                && let Some(key) = self.key_at(span, offset)
            {
                let words: Vec<String> = key.iter().map(ToString::to_string).collect();
                object = format!("{object}, element {}", words.join(" . "));
                if let Some(set) = span.set.clone() {
                    subject = Subject::Element { set, key };
                }
            }
        }
        Refusal { subject, object, errno: code, message: text }
    }

    /// The key of the element that lies at an offset of a message.
    fn key_at(&self, span: &Span, offset: usize) -> Option<Vec<Value>> {
        let bytes = self.buffer.bytes.get(span.start..)?;
        let len = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let body = bytes.get(HEADER + 4..len)?;
        let list = Attrs::find(body, ELEMENTS)?;
        let base = bytes.as_ptr() as usize;
        let element = Attrs(list).map(|(_, element)| element).find(|element| {
            let start = element.as_ptr() as usize - base;
            (start - 4..start + element.len()).contains(&offset)
        })?;
        let key = Attrs::find(element, uapi::SET_ELEM_KEY)?;
        let mut rest = Attrs::find(key, uapi::DATA_VALUE)?;
        let mut fields = Vec::new();
        for kind in &span.fields {
            fields.push(decode(*kind, rest.get(..kind.len())?)?);
            rest = rest.get(kind.len().next_multiple_of(4)..).unwrap_or(&[]);
        }
        Some(fields)
    }
}

fn flags_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_ne_bytes([bytes[at], bytes[at + 1]])
}

fn field_type(value: &Value) -> Type {
    match value {
        Value::Ip4(_) => Type::Ipv4Addr,
        Value::Ip6(_) => Type::Ipv6Addr,
        Value::Proto(_) => Type::InetProto,
        Value::Port(_) => Type::InetService,
        Value::Mark(_) => Type::Mark,
        Value::Integer(_) => Type::Integer,
        Value::Ifname(_) => Type::Ifname,
    }
}

fn decode(kind: Type, bytes: &[u8]) -> Option<Value> {
    Some(match kind {
        Type::Ipv4Addr => Value::Ip4(<[u8; 4]>::try_from(bytes).ok()?.into()),
        Type::Ipv6Addr => Value::Ip6(<[u8; 16]>::try_from(bytes).ok()?.into()),
        Type::InetProto => Value::Proto(*bytes.first()?),
        Type::InetService => Value::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
        Type::Mark => Value::Mark(u32::from_ne_bytes(bytes.try_into().ok()?)),
        Type::Integer => Value::Integer(u32::from_ne_bytes(bytes.try_into().ok()?)),
        Type::Ifname => Value::Ifname(bytes.try_into().ok()?),
        Type::Other { .. } => return None,
    })
}
