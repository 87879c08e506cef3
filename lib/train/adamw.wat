;; The inner loops of optimiser-kernel.ts, which holds these instructions as base64.
;; Rebuild: wat2wasm adamw.wat --output=adamw.wasm && base64 -w 0 adamw.wasm  (wabt 1.0.39)
;;
;; Four float32 a time. Addresses and lengths are in bytes; a length is a positive multiple of 16.
(module
  (import "host" "memory" (memory 1))
  ;; m += (1 - b1) (g s - m);  v = b2 v + (1 - b2) (g s)^2;  w = w keep - step m / (sqrt(v) root + eps)
  (func (export "adamw")
    (param $bytes i32) (param $w i32) (param $m i32) (param $v i32) (param $g i32)
    (param $scale f32) (param $c1 f32) (param $b2 f32) (param $c2 f32) (param $keep f32) (param $step f32) (param $root f32) (param $eps f32)
    (local $i i32) (local $gi v128) (local $mi v128) (local $vi v128)
    (loop $next
      (local.set $gi (f32x4.mul (v128.load (i32.add (local.get $g) (local.get $i))) (f32x4.splat (local.get $scale))))
      (local.set $mi (v128.load (i32.add (local.get $m) (local.get $i))))
      (local.set $mi (f32x4.add (local.get $mi) (f32x4.mul (f32x4.splat (local.get $c1)) (f32x4.sub (local.get $gi) (local.get $mi)))))
      (v128.store (i32.add (local.get $m) (local.get $i)) (local.get $mi))
      (local.set $vi (f32x4.add
        (f32x4.mul (f32x4.splat (local.get $b2)) (v128.load (i32.add (local.get $v) (local.get $i))))
        (f32x4.mul (f32x4.splat (local.get $c2)) (f32x4.mul (local.get $gi) (local.get $gi)))))
      (v128.store (i32.add (local.get $v) (local.get $i)) (local.get $vi))
      (v128.store (i32.add (local.get $w) (local.get $i)) (f32x4.sub
        (f32x4.mul (v128.load (i32.add (local.get $w) (local.get $i))) (f32x4.splat (local.get $keep)))
        (f32x4.div
          (f32x4.mul (f32x4.splat (local.get $step)) (local.get $mi))
          (f32x4.add (f32x4.mul (f32x4.sqrt (local.get $vi)) (f32x4.splat (local.get $root))) (f32x4.splat (local.get $eps))))))
      (local.set $i (i32.add (local.get $i) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $bytes)))))
  ;; w += g
  (func (export "add") (param $bytes i32) (param $w i32) (param $g i32)
    (local $i i32)
    (loop $next
      (v128.store (i32.add (local.get $w) (local.get $i)) (f32x4.add
        (v128.load (i32.add (local.get $w) (local.get $i))) (v128.load (i32.add (local.get $g) (local.get $i)))))
      (local.set $i (i32.add (local.get $i) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $bytes)))))
  ;; the sum of g^2, in float64
  (func (export "squares") (param $bytes i32) (param $g i32) (result f64)
    (local $i i32) (local $low v128) (local $high v128) (local $sum v128) (local $other v128)
    (loop $next
      (local.set $low (f64x2.promote_low_f32x4 (v128.load64_zero (i32.add (local.get $g) (local.get $i)))))
      (local.set $high (f64x2.promote_low_f32x4 (v128.load64_zero offset=8 (i32.add (local.get $g) (local.get $i)))))
      (local.set $sum (f64x2.add (local.get $sum) (f64x2.mul (local.get $low) (local.get $low))))
      (local.set $other (f64x2.add (local.get $other) (f64x2.mul (local.get $high) (local.get $high))))
      (local.set $i (i32.add (local.get $i) (i32.const 16)))
      (br_if $next (i32.lt_u (local.get $i) (local.get $bytes))))
    (local.set $sum (f64x2.add (local.get $sum) (local.get $other)))
    (f64.add (f64x2.extract_lane 0 (local.get $sum)) (f64x2.extract_lane 1 (local.get $sum)))))
