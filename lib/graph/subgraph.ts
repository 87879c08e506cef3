/**
 * A subgraph is a value: plain records, no protobuf, no open session. lib/graph/onnx.ts is the only door to ONNX
 * bytes, lib/graph/runtime.ts the only door to onnxruntime.
 */
import type { Dim, DType, HostTensor } from '../../kernels/emit.ts';

export type { Dim, DType, HostTensor };

/** A named input or output. Symbols in `shape` are shared by name across the subgraph's ports. */
export interface Port {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly Dim[];
}

/** Numbers are ONNX floats or ints according to the tag: ONNX distinguishes them, JavaScript does not. */
export type Attribute =
  | { readonly kind: 'int'; readonly value: number }
  | { readonly kind: 'float'; readonly value: number }
  | { readonly kind: 'string'; readonly value: string }
  | { readonly kind: 'ints'; readonly value: readonly number[] }
  | { readonly kind: 'floats'; readonly value: readonly number[] }
  | { readonly kind: 'strings'; readonly value: readonly string[] }
  | { readonly kind: 'tensor'; readonly value: HostTensor }
  | { readonly kind: 'graph'; readonly value: Subgraph };

/** One ONNX operator. Edges are names; '' marks an optional input that is absent. */
export interface Node {
  readonly op: string;
  /** '' is the standard operator set. */
  readonly domain: string;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
  readonly attributes: Readonly<Record<string, Attribute>>;
}

/** A constant that lives in a file and is not read until onnxruntime maps it (e.g. inside a .safetensors). */
export interface StoredTensor {
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly file: { readonly path: string; readonly offset: number; readonly bytes: number };
}

export type Constant = HostTensor | StoredTensor;

export const isStored = (constant: Constant): constant is StoredTensor => 'file' in constant;

export interface Subgraph {
  readonly name: string;
  readonly inputs: readonly Port[];
  readonly outputs: readonly Port[];
  /** In an order in which every input is produced before it is read. */
  readonly nodes: readonly Node[];
  readonly constants: ReadonlyMap<string, Constant>;
}
