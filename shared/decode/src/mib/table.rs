//! The table: a tree of arcs in which the children of a node stand side by side, in order.

use std::collections::HashMap;

use super::hint;

/// The most nodes of the tree. Each takes 32 bytes here, and twice that while the tree is built.
pub(super) const MAX_NODES: usize = 2_000_000;

/// The longest name, bytes (RFC 2578 §3.1 allows 64 characters).
const MAX_NAME: usize = 255;

/// The most modules.
const MAX_MODULES: usize = u16::MAX as usize;

/// None, in an index.
const NONE: u32 = u32::MAX;

/// What an object identifier is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A scalar or a column: what has instances.
    Object,
    /// A table or a row.
    Container,
    /// A notification or a trap.
    Notification,
    /// Any other name.
    Other,
}

/// The nearest ancestor of an object identifier that has a name, or itself.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The descriptor, such as `ifOperStatus`.
    pub name: &'a str,
    /// The module, such as `IF-MIB`.
    pub module: &'a str,
    /// What it is.
    pub kind: Kind,
    /// How its values are shown.
    pub syntax: Syntax<'a>,
    /// Arcs of it.
    pub arcs: usize,
    /// Whether it has all arcs that were looked for.
    pub is_exact: bool,
}

/// How values of an object are shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Syntax<'a> {
    labels: Option<&'a Labels>,
    hint: &'a str,
}

/// Labels of an INTEGER or of BITS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    /// In order of value.
    pub(super) labels: Vec<(i64, String)>,
    pub(super) is_bits: bool,
}

/// What is known of object identifiers. The default holds SNMPv2-MIB, and the notifications and
/// columns of IF-MIB.
#[derive(Debug)]
pub struct Mib {
    /// The root is the first.
    nodes: Vec<Node>,
    names: String,
    modules: Vec<String>,
    labels: Vec<Labels>,
    hints: Vec<String>,
}

#[derive(Clone, Debug)]
struct Node {
    arc: u32,
    first_child: u32,
    children: u32,
    name_at: u32,
    labels: u32,
    hint: u32,
    module: u16,
    /// 0 if it has no name.
    name_length: u8,
    kind: Kind,
}

impl Mib {
    /// The nearest ancestor that has a name, or the node itself.
    pub fn find(&self, arcs: impl Iterator<Item = u32>) -> Option<Found<'_>> {
        let mut at = self.nodes.first()?;
        let mut best = None;
        let mut depth = 0;
        let mut is_exact = true;
        for arc in arcs {
            let first = at.first_child as usize;
            let children = &self.nodes[first..first + at.children as usize];
            let Some(child) = child(children, arc) else {
                is_exact = false;
                break;
            };
            at = child;
            depth += 1;
            if at.name_length > 0 {
                best = Some((at, depth));
            }
        }
        let (node, arcs) = best?;
        let name = node.name_at as usize;
        Some(Found {
            name: &self.names[name..name + usize::from(node.name_length)],
            module: &self.modules[usize::from(node.module)],
            kind: node.kind,
            syntax: Syntax {
                labels: self.labels.get(node.labels as usize),
                hint: self.hints.get(node.hint as usize).map_or("", |hint| hint),
            },
            arcs,
            is_exact: is_exact && arcs == depth,
        })
    }

    /// The number of names.
    pub fn names(&self) -> usize {
        self.nodes.iter().filter(|node| node.name_length > 0).count()
    }

    /// Memory of the table, bytes.
    pub fn bytes(&self) -> usize {
        let text = |texts: &[String]| texts.iter().map(|text| text.capacity() + size_of::<String>()).sum::<usize>();
        let of_labels = |labels: &Labels| {
            let texts: usize = labels.labels.iter().map(|(_, label)| label.capacity()).sum();
            texts + labels.labels.capacity() * size_of::<(i64, String)>() + size_of::<Labels>()
        };
        self.nodes.capacity() * size_of::<Node>()
            + self.names.capacity()
            + text(&self.modules)
            + text(&self.hints)
            + self.labels.iter().map(of_labels).sum::<usize>()
    }
}

/// The child of an arc. Arcs are mostly numbered without gaps, so its place is tried first.
fn child(children: &[Node], arc: u32) -> Option<&Node> {
    let place = arc.checked_sub(children.first()?.arc)? as usize;
    if let Some(child) = children.get(place).filter(|child| child.arc == arc) {
        return Some(child);
    }
    children.binary_search_by_key(&arc, |node| node.arc).ok().map(|index| &children[index])
}

impl Syntax<'_> {
    /// Whether values are BITS.
    pub fn is_bits(&self) -> bool {
        self.labels.is_some_and(|labels| labels.is_bits)
    }

    /// The label of an INTEGER, or what the display hint gives.
    pub(crate) fn integer(&self, number: i64) -> Option<String> {
        let labels = self.labels.filter(|labels| !labels.is_bits);
        let label = labels.and_then(|labels| labels.of(number));
        label.map(str::to_owned).or_else(|| hint::integer(self.hint, number))
    }

    /// The labels of the bits that are set, or what the display hint gives.
    pub(crate) fn octets(&self, octets: &[u8]) -> Option<String> {
        let Some(labels) = self.labels.filter(|labels| labels.is_bits) else {
            return hint::octets(self.hint, octets);
        };
        let is_set = |bit: &usize| octets[bit / 8] & 0x80 >> (bit % 8) != 0;
        let mut text = String::new();
        for bit in (0..octets.len() * 8).filter(is_set) {
            if text.len() >= hint::MAX_TEXT {
                text.push_str(", ...");
                break;
            }
            if !text.is_empty() {
                text.push_str(", ");
            }
            match labels.of(bit as i64) {
                Some(label) => text.push_str(label),
                None => text.push_str(&bit.to_string()),
            }
        }
        Some(text)
    }
}

impl Labels {
    fn of(&self, value: i64) -> Option<&str> {
        let index = self.labels.binary_search_by_key(&value, |(value, _)| *value).ok()?;
        Some(&self.labels[index].1)
    }
}

/// Collects names in a tree in order of arrival, then puts it in order.
#[derive(Debug)]
pub(super) struct Builder {
    nodes: Vec<Node>,
    /// By parent and arc.
    indices: HashMap<(u32, u32), u32>,
    names: String,
    modules: Vec<String>,
    module_indices: HashMap<String, u16>,
    labels: Vec<Labels>,
    hints: Vec<String>,
}

impl Builder {
    pub(super) fn new() -> Builder {
        Builder {
            nodes: vec![Node::new(0)],
            indices: HashMap::new(),
            names: String::new(),
            modules: Vec::new(),
            module_indices: HashMap::new(),
            labels: Vec::new(),
            hints: Vec::new(),
        }
    }

    /// Keeps labels: their index, for [`Builder::add`].
    pub(super) fn labels(&mut self, labels: Labels) -> u32 {
        self.labels.push(labels);
        self.labels.len() as u32 - 1
    }

    /// Keeps a display hint: its index, for [`Builder::add`].
    pub(super) fn hint(&mut self, hint: &str) -> u32 {
        self.hints.push(hint.to_owned());
        self.hints.len() as u32 - 1
    }

    /// Adds a name, or replaces the one that its object identifier had. `false` if the table is
    /// full or the name is longer than 255 bytes.
    pub(super) fn add(
        &mut self,
        arcs: &[u32],
        name: &str,
        module: &str,
        kind: Kind,
        labels: Option<u32>,
        hint: Option<u32>,
    ) -> bool {
        if name.is_empty() || name.len() > MAX_NAME {
            return false;
        }
        let Some(module) = self.module(module) else { return false };
        let mut at = 0;
        for &arc in arcs {
            let next = self.nodes.len() as u32;
            if next as usize == MAX_NODES && !self.indices.contains_key(&(at, arc)) {
                return false;
            }
            at = *self.indices.entry((at, arc)).or_insert(next);
            if at == next {
                self.nodes.push(Node::new(arc));
            }
        }
        let name_at = self.names.len() as u32;
        self.names.push_str(name);
        let node = &mut self.nodes[at as usize];
        (node.name_at, node.name_length) = (name_at, name.len() as u8);
        (node.module, node.kind) = (module, kind);
        (node.labels, node.hint) = (labels.unwrap_or(NONE), hint.unwrap_or(NONE));
        true
    }

    fn module(&mut self, name: &str) -> Option<u16> {
        if let Some(&index) = self.module_indices.get(name) {
            return Some(index);
        }
        let index = self.modules.len();
        if index == MAX_MODULES {
            return None;
        }
        self.modules.push(name.to_owned());
        self.module_indices.insert(name.to_owned(), index as u16);
        Some(index as u16)
    }

    /// Puts the tree in order: level by level, so that the children of a node are side by side.
    pub(super) fn build(mut self) -> Mib {
        let mut edges: Vec<(u32, u32, u32)> = Vec::with_capacity(self.indices.len());
        edges.extend(self.indices.drain().map(|((parent, arc), node)| (parent, arc, node)));
        edges.sort_unstable();
        let mut nodes = Vec::with_capacity(self.nodes.len());
        nodes.push(self.nodes[0].clone());
        // Where each node in order was before.
        let mut former = vec![0_u32];
        let mut index = 0;
        while index < nodes.len() {
            let first = edges.partition_point(|(parent, ..)| *parent < former[index]);
            let children = edges[first..].iter().take_while(|(parent, ..)| *parent == former[index]);
            let first_child = nodes.len();
            let found: Vec<u32> = children.map(|&(_, _, node)| node).collect();
            for node in found {
                nodes.push(self.nodes[node as usize].clone());
                former.push(node);
            }
            nodes[index].first_child = first_child as u32;
            nodes[index].children = (nodes.len() - first_child) as u32;
            index += 1;
        }
        self.names.shrink_to_fit();
        Mib { nodes, names: self.names, modules: self.modules, labels: self.labels, hints: self.hints }
    }
}

impl Node {
    fn new(arc: u32) -> Node {
        Node {
            arc,
            first_child: 0,
            children: 0,
            name_at: 0,
            labels: NONE,
            hint: NONE,
            module: 0,
            name_length: 0,
            kind: Kind::Other,
        }
    }
}
