/** The door to ONNX bytes: a Subgraph as a ModelProto and back. The only importer of protobuf and the generated schema. */
import { isAbsolute, join, normalize } from 'node:path';
import { create, fromBinary, toBinary } from '@bufbuild/protobuf';
import {
  AttributeProto_AttributeType as Kind, AttributeProtoSchema, GraphProtoSchema, ModelProtoSchema, NodeProtoSchema,
  TensorProto_DataLocation as Location, TensorProto_DataType as Type, TensorProtoSchema, ValueInfoProtoSchema,
} from './generated/onnx_pb.ts';
import type { AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto } from './generated/onnx_pb.ts';
import { elementCount, tensorBytes, tensorFromBytes, zeros } from '../tensor.ts';
import { constantBytes } from './constants.ts';
import { canonicalDim } from './dims.ts';
import type { Placement } from './placement.ts';
import { isStored } from './subgraph.ts';
import type { Attribute, Constant, DType, Dim, HostTensor, Node, Port, StoredTensor, Subgraph } from './subgraph.ts';

const TYPE_OF: Readonly<Record<DType, Type>> = {
  float32: Type.FLOAT, float64: Type.DOUBLE, float16: Type.FLOAT16, bfloat16: Type.BFLOAT16, int8: Type.INT8, uint8: Type.UINT8,
  int16: Type.INT16, uint16: Type.UINT16, int32: Type.INT32, uint32: Type.UINT32, int64: Type.INT64, bool: Type.BOOL,
};
const isDType = (name: string): name is DType => Object.hasOwn(TYPE_OF, name);
const DTYPE_OF = new Map(Object.entries(TYPE_OF).flatMap(([name, type]) => (isDType(name) ? [[type, name] as const] : [])));

/** The ONNX number of a dtype, as the `to` attribute of Cast and the like want it. */
export const onnxType = (dtype: DType): number => TYPE_OF[dtype];
/** The dtype of an ONNX number; null for a type the library does not hold (strings, 4-bit integers, ...). */
export const dtypeOfOnnx = (type: number): DType | null => DTYPE_OF.get(type) ?? null;

/** A protobuf message cannot be longer than this. */
const MESSAGE_LIMIT = 2 ** 31 - 1;
/** Opsets whose operators mean the same for everything the library writes, so a subgraph need not remember its own. */
const OPSETS = { first: 18, last: 24 } as const;

export interface ModelOptions {
  /** Version of the standard operator set, 18..24. Default 23. */
  readonly opset?: number;
  /** Versions of further domains. Default { 'com.microsoft': 1 }; a domain without a version is refused. */
  readonly domains?: Readonly<Record<string, number>>;
  /**
   * Decides where a constant's bytes go; null embeds them (host tensors only). Default: host tensors are embedded and
   * stored ones referred to by their own path. `depth` is 0 for the subgraph itself, 1 for a body inside it, and so on.
   */
  readonly place?: (name: string, constant: Constant, depth: number) => Placement | null;
  /** Name of one more output, in front of the others: an empty sequence of float32 tensors. Default none. */
  readonly emptySequence?: string | undefined;
}

/**
 * The subgraph as ONNX ModelProto bytes (IR version 10, raw little-endian data). Throws when a node's domain has no
 * version, a stored constant is to be embedded, or the embedded constants exceed protobuf's 2 GiB.
 */
export function toModel(subgraph: Subgraph, options: ModelOptions = {}): Uint8Array {
  const opset = options.opset ?? 23;
  if (!Number.isInteger(opset) || opset < OPSETS.first || opset > OPSETS.last) {
    throw new Error(`toModel: opset must be ${OPSETS.first}..${OPSETS.last}, got ${opset}`);
  }
  const versions: Readonly<Record<string, number>> = { 'com.microsoft': 1, ...options.domains, '': opset };
  const place = options.place ?? ((_name, constant) => (isStored(constant) ? { location: constant.file.path, offset: constant.file.offset } : null));
  const used = new Set(['']);
  let embedded = 0;

  const tensor = (name: string, constant: Constant, at: Placement | null): TensorProto => {
    const head = { name, dims: constant.shape.map(BigInt), dataType: TYPE_OF[constant.dtype] };
    if (at !== null) {
      const entries = { location: at.location, offset: `${at.offset}`, length: `${constantBytes(constant)}` };
      const externalData = Object.entries(entries).map(([key, value]) => ({ key, value }));
      return create(TensorProtoSchema, { ...head, externalData, dataLocation: Location.EXTERNAL });
    }
    if (isStored(constant)) throw new Error(`toModel: constant ${name} of ${subgraph.name} lies in ${constant.file.path} and cannot be embedded`);
    if (constant.data.byteLength !== constantBytes(constant)) {
      throw new Error(`toModel: constant ${name} of ${subgraph.name} must have ${elementCount(constant.shape)} elements for [${constant.shape}], got ${constant.data.length}`);
    }
    embedded += constant.data.byteLength;
    if (embedded > MESSAGE_LIMIT) {
      throw new Error(`toModel: embedded constants of ${subgraph.name} must stay below 2 GiB, got ${embedded} bytes up to ${name}; place them outside`);
    }
    return create(TensorProtoSchema, { ...head, rawData: tensorBytes(constant) });
  };
  const attribute = (name: string, a: Attribute, depth: number): AttributeProto => {
    const text = new TextEncoder();
    switch (a.kind) {
      case 'int': return create(AttributeProtoSchema, { name, type: Kind.INT, i: BigInt(a.value) });
      case 'float': return create(AttributeProtoSchema, { name, type: Kind.FLOAT, f: a.value });
      case 'string': return create(AttributeProtoSchema, { name, type: Kind.STRING, s: text.encode(a.value) });
      case 'ints': return create(AttributeProtoSchema, { name, type: Kind.INTS, ints: a.value.map(BigInt) });
      case 'floats': return create(AttributeProtoSchema, { name, type: Kind.FLOATS, floats: [...a.value] });
      case 'strings': return create(AttributeProtoSchema, { name, type: Kind.STRINGS, strings: a.value.map((s) => text.encode(s)) });
      case 'tensor': return create(AttributeProtoSchema, { name, type: Kind.TENSOR, t: tensor('', a.value, null) });
      case 'graph': return create(AttributeProtoSchema, { name, type: Kind.GRAPH, g: graph(a.value, depth + 1) });
    }
  };
  const node = (n: Node, index: number, depth: number): NodeProto => {
    if (versions[n.domain] === undefined) throw new Error(`toModel: domain ${n.domain} of ${n.op} in ${subgraph.name} needs a version in options.domains`);
    used.add(n.domain);
    return create(NodeProtoSchema, {
      name: `${n.op}_${index}`, opType: n.op, domain: n.domain, input: [...n.inputs], output: [...n.outputs],
      attribute: Object.entries(n.attributes).map(([name, a]) => attribute(name, a, depth)),
    });
  };
  const port = (p: Port): ValueInfoProto => create(ValueInfoProtoSchema, {
    name: p.name,
    type: { value: { case: 'tensorType', value: { elemType: TYPE_OF[p.dtype], shape: { dim: p.shape.map((d) => (
      { value: typeof d === 'number' ? { case: 'dimValue' as const, value: BigInt(d) } : { case: 'dimParam' as const, value: d } })) } } } },
  });
  const graph = (g: Subgraph, depth: number): GraphProto => create(GraphProtoSchema, {
    name: g.name, input: g.inputs.map(port), output: g.outputs.map(port), node: g.nodes.map((n, i) => node(n, i, depth)),
    initializer: [...g.constants].map(([name, constant]) => tensor(name, constant, place(name, constant, depth))),
  });

  const body = graph(subgraph, 0);
  if (options.emptySequence !== undefined) {
    const sequence = options.emptySequence;
    const element = { value: { case: 'tensorType' as const, value: { elemType: Type.FLOAT } } };
    body.node.push(create(NodeProtoSchema, { name: sequence, opType: 'SequenceEmpty', output: [sequence] }));
    body.output.unshift(create(ValueInfoProtoSchema, { name: sequence, type: { value: { case: 'sequenceType', value: { elemType: element } } } }));
  }
  const opsetImport = [...used].map((domain) => ({ domain, version: BigInt(versions[domain]!) }));
  return toBinary(ModelProtoSchema, create(ModelProtoSchema, { irVersion: 10n, producerName: 'attention-surgery', opsetImport, graph: body }));
}

/**
 * Reads ONNX ModelProto bytes. External data become StoredTensors under `directory`. Names of nodes, documentation and
 * metadata carry no meaning and are not kept; anything else the Subgraph record cannot hold is refused by name.
 */
export function fromModel(bytes: Uint8Array, { directory }: { readonly directory: string }): Subgraph {
  // A plain view: the parts of a Node Buffer would be Buffers, whose `slice` does not copy.
  const model = fromBinary(ModelProtoSchema, new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength));
  const refuse = (rule: string, got: string): never => { throw new Error(`fromModel: ${rule}, got ${got}`); };
  const standard = model.opsetImport.find((o) => o.domain === '' || o.domain === 'ai.onnx');
  const opset = Number(standard?.version ?? 1);
  if (opset < OPSETS.first || opset > OPSETS.last) refuse(`the opset must be ${OPSETS.first}..${OPSETS.last}`, `${opset}`);
  if (model.functions.length > 0) refuse('local functions cannot be held', model.functions.map((f) => f.name).join(', '));
  if (model.trainingInfo.length > 0) refuse('training information cannot be held', `${model.trainingInfo.length} entries`);
  if (model.graph === undefined) return refuse('the model must have a graph', 'none');

  const safe = (value: bigint, what: string): number => {
    const number = Number(value);
    return Number.isSafeInteger(number) ? number : refuse(`${what} must be an exact integer`, `${value}`);
  };
  const dtype = (type: number, what: string): DType => DTYPE_OF.get(type) ?? refuse(`${what} must have a type the library holds`, Type[type] ?? `${type}`);
  const stored = (t: TensorProto, head: { dtype: DType; shape: number[] }): StoredTensor => {
    const entry = new Map(t.externalData.map(({ key, value }) => [key, value]));
    const location = entry.get('location') ?? refuse(`external tensor ${t.name} must name a location`, 'none');
    if (isAbsolute(location) || normalize(location).startsWith('..')) refuse(`external tensor ${t.name} must lie inside the model's directory`, location);
    const offset = Number(entry.get('offset') ?? 0), length = Number(entry.get('length') ?? constantBytes(head));
    if (!Number.isSafeInteger(offset) || offset < 0) refuse(`the offset of external tensor ${t.name} must be a whole number`, `${entry.get('offset')}`);
    if (length !== constantBytes(head)) refuse(`external tensor ${t.name} ${head.dtype} [${head.shape}] must take ${constantBytes(head)} bytes`, `${length}`);
    return { ...head, file: { path: join(directory, location), offset, bytes: length } };
  };
  const host = (t: TensorProto, head: { dtype: DType; shape: number[] }): HostTensor => {
    const lists = [t.rawData, t.floatData, t.int32Data, t.int64Data, t.doubleData, t.uint64Data].filter((list) => list.length > 0);
    if (lists.length > 1) refuse(`tensor ${t.name} must hold its data once`, `${lists.length} fields`);
    const list = lists[0];
    if (list === undefined || list === t.rawData) return tensorFromBytes(head.dtype, head.shape, t.rawData);
    const tensor = zeros(head.dtype, head.shape);
    if (list.length !== tensor.data.length) refuse(`tensor ${t.name} [${head.shape}] must have ${tensor.data.length} elements`, `${list.length}`);
    for (const [i, value] of list.entries()) {
      if (tensor.data instanceof BigInt64Array) tensor.data[i] = BigInt(value);
      else tensor.data[i] = Number(value);
    }
    return tensor;
  };
  const constant = (t: TensorProto): Constant => {
    if (t.segment !== undefined) refuse('tensors in segments cannot be held', t.name);
    const head = { dtype: dtype(t.dataType, `tensor ${t.name}`), shape: t.dims.map((d) => safe(d, `a length of tensor ${t.name}`)) };
    return t.dataLocation === Location.EXTERNAL ? stored(t, head) : host(t, head);
  };
  const attribute = (a: AttributeProto, of: string): Attribute => {
    const text = new TextDecoder('utf-8', { fatal: true });
    if (a.refAttrName !== '') refuse(`attribute ${a.name} of ${of} must have a value`, `a reference to ${a.refAttrName}`);
    switch (a.type) {
      case Kind.INT: return { kind: 'int', value: safe(a.i, `attribute ${a.name} of ${of}`) };
      case Kind.FLOAT: return { kind: 'float', value: a.f };
      case Kind.STRING: return { kind: 'string', value: text.decode(a.s) };
      case Kind.INTS: return { kind: 'ints', value: a.ints.map((i) => safe(i, `attribute ${a.name} of ${of}`)) };
      case Kind.FLOATS: return { kind: 'floats', value: a.floats };
      case Kind.STRINGS: return { kind: 'strings', value: a.strings.map((s) => text.decode(s)) };
      case Kind.TENSOR: {
        const value = a.t === undefined ? undefined : constant(a.t);
        if (value === undefined || isStored(value)) return refuse(`attribute ${a.name} of ${of} must hold its tensor`, 'a reference');
        return { kind: 'tensor', value };
      }
      case Kind.GRAPH: return a.g === undefined ? refuse(`attribute ${a.name} of ${of} must hold a graph`, 'none') : { kind: 'graph', value: graph(a.g) };
      default: return refuse(`attribute ${a.name} of ${of} must be an int, float, string, tensor or graph`, Kind[a.type] ?? `${a.type}`);
    }
  };
  const port = (v: ValueInfoProto): Port => {
    const type = v.type?.value;
    if (type?.case !== 'tensorType') return refuse(`port ${v.name} must be a tensor`, type?.case ?? 'no type');
    if (type.value.shape === undefined) return refuse(`port ${v.name} must have a shape`, 'none');
    const shape = type.value.shape.dim.map((d, axis): Dim => {
      if (d.value.case === 'dimValue') return safe(d.value.value, `axis ${axis} of port ${v.name}`);
      // An axis without a name is free: it gets a name of its own, so that it agrees with nothing by accident.
      return d.value.case === 'dimParam' && d.value.value !== '' ? canonicalDim(d.value.value) : `axis${axis}_of_${v.name.replace(/\W/g, '_')}`;
    });
    return { name: v.name, dtype: dtype(type.value.elemType, `port ${v.name}`), shape };
  };
  const graph = (g: GraphProto): Subgraph => {
    if (g.sparseInitializer.length > 0) refuse('sparse constants cannot be held', `${g.sparseInitializer.length} in ${g.name}`);
    if (g.quantizationAnnotation.length > 0) refuse('quantisation annotations cannot be held', `${g.quantizationAnnotation.length} in ${g.name}`);
    const constants = new Map(g.initializer.map((t) => [t.name, constant(t)]));
    const overridable = g.input.find((i) => constants.has(i.name));
    if (overridable !== undefined) refuse('inputs with a default value cannot be held', overridable.name);
    const nodes = g.node.map((n): Node => {
      if (n.overload !== '') refuse(`node ${n.name} must not use an overload`, n.overload);
      return {
        op: n.opType, domain: n.domain === 'ai.onnx' ? '' : n.domain, inputs: n.input, outputs: n.output,
        attributes: Object.fromEntries(n.attribute.map((a) => [a.name, attribute(a, `${n.opType} -> ${n.output.join(', ')}`)])),
      };
    });
    return { name: g.name, inputs: g.input.map(port), outputs: g.output.map(port), nodes, constants };
  };
  return graph(model.graph);
}
