/** The kernels: tensor programs over the vocabulary of emit.ts. */
export type * from './emit.ts';
export * from './attention.ts';
export * from './attention-layer.ts';
export * from './attention-statistics.ts';
export * from './decoder-layer.ts';
export * from './embedding.ts';
export * from './head-norm.ts';
export * from './latent-attention.ts';
export * from './least-squares.ts';
export * from './linear.ts';
export * from './logits.ts';
export * from './partial-rope.ts';
export * from './rms-norm.ts';
export * from './rope.ts';
export * from './segments.ts';
export * from './split-head-norm.ts';
export * from './stored-rows.ts';
export * from './swiglu.ts';
