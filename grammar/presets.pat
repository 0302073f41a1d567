# The published systems, as patterns. Sizes are the papers' unless a parameter says otherwise. `patternc check presets` proves
# the asserts.

# FlashAttention (Dao et al. 2022): dense attention; block skipping comes with causal.
pattern dense = full
pattern flash_causal = causal
assert hops(dense) == 1
assert universal(dense)
assert hops(flash_causal) == 1

# Sparse Transformer (Child et al. 2019): l = 128, c = 8; both factorisations as one merged head.
def sparse_transformer_strided(l) = causal & (window(l) | stride(l))
def sparse_transformer_fixed(l, c) = causal & (chunk(l) | summary(l, c))
pattern sparse_strided = sparse_transformer_strided(128)
pattern sparse_fixed = sparse_transformer_fixed(128, 8)
# The same on alternate layers, and on alternate heads with distinct summary slots.
pattern sparse_strided_layers = layers((causal & window(128)) + (causal & stride(128)))
pattern sparse_fixed_heads = heads((causal & (chunk(128) | summary(128, 8))) + (causal & (chunk(128) | summary(128, 8, slot=1))))
assert hops(sparse_strided) == 2
assert hops(sparse_fixed) == 2
assert coverage(sparse_strided_layers) == 2
assert hops(sparse_fixed_heads) == 2

# Longformer (Beltagy et al. 2020): window 512, the first token global; a dilated variant.
def longformer_with(w, G) = local(w) | global(G)
pattern longformer = longformer_with(512, [0])
pattern longformer_dilated = heads(6 * local(512) + 2 * window(left=256, right=256, dilation=2)) | global([0])
assert hub(longformer)
assert universal(longformer)
assert hops(longformer) == 2
assert hub(longformer_dilated)

# BigBird (Zaheer et al. 2020): blocks of 64, a window of three, 3 random blocks, first and last block global (ITC).
def bigbird_with(b, r) = blocks(b, 1, 1) | random(r, block=b) | rows([0..b - 1, -b..-1]) | columns([0..b - 1, -b..-1])
pattern bigbird = bigbird_with(64, 3)
# ETC: blocks of 84, 256 global tokens in front, no random blocks.
pattern bigbird_etc = blocks(84, 1, 1) | global([0..255])
assert universal(bigbird)
assert hops(bigbird) <= 2
assert universal(bigbird_etc)

# Mistral 7B (Jiang et al. 2023): 4,096 keys, the query's own included.
pattern mistral = causal & window(4096)
assert hamiltonian(mistral)
assert hops(mistral) == 33 at 128K

# StreamingLLM (Xiao et al. 2023): 4 sinks and a rolling window.
pattern streaming_llm = causal & (window(1024) | sinks(4))
assert hops(streaming_llm) == 978 at 1_000_000

# Layer schedules. Gemma 2: local and full alternate; Gemma 3: five local, one full; gpt-oss: windows of 128 on even layers.
pattern gemma2 = layers((causal & window(4096)) + causal)
pattern gemma3 = layers(5 * (causal & window(1024)) + causal)
pattern gpt_oss = layers((causal & window(128)) + causal)
assert coverage(gemma2) == 2
assert coverage(gemma3) == 6
assert coverage(gpt_oss) == 2
# Llama 4: chunks of 8,192 on three layers of four.
pattern llama4 = layers(3 * (causal & chunk(8192)) + causal)
assert coverage(llama4) == 4
# MiniMax-01 and Jamba: softmax attention on one layer in eight; the others are linear attention or Mamba and hold no pairs.
pattern minimax01 = layers(7 * none + causal)
pattern jamba = layers(4 * none + causal + 3 * none)
assert hops(minimax01) == 8
assert hops(jamba) == 5
assert coverage(jamba) == 8

# Learned selection. The 64 keys with the best attention scores.
pattern topk_attention = causal & topk(exact, 64)
assert causal(topk_attention)
assert nonempty(topk_attention)
# DeepSeek Sparse Attention (DeepSeek-V3.2, 2025): the 2,048 best causal keys by the lightning indexer, the same for all heads.
pattern dsa = causal & topk(indexer(heads=64, dim=128), 2048)
assert causal(dsa)
assert nonempty(dsa)
assert dsa <= causal
# MoBA (Lu et al. 2025): 12 blocks of 4,096 by the mean of their keys, the own one among them.
def moba_with(b, count) = causal & topk(meanpool(b), count, block=b, force=chunk(b))
pattern moba = moba_with(4096, 12)
# As in their Llama 3.1 8B with a context of 1M: the last 3 of 32 layers are full.
pattern moba_layers = layers(29 * moba + 3 * causal)
assert causal(moba)
assert self_loops(moba)
assert causal & chunk(4096) <= moba
assert causal(moba_layers)
assert self_loops(moba_layers)
# NSA (Yuan et al. 2025): 16 blocks of 64 by compressed attention (32 keys, every 16), the first and the two nearest among them,
# the same for the heads of a group; a window of 512; and the compressed keys themselves, each at the last position of its 32.
# Every branch has a softmax of its own.
def nsa_selected_with(b, count) = causal & topk(compressed(32, 16), count, block=b, share=group, force=sinks(b) | blocks(b, 1, 0))
pattern nsa_selected = nsa_selected_with(64, 16)
let nsa_compressed = causal & where(k >= 31 and k % 16 == 15)
def nsa_with(b, count, w) = gated(compressed=nsa_compressed, selected=nsa_selected_with(b, count), window=causal & window(w))
pattern nsa = nsa_with(64, 16, 512)
assert causal(nsa)
assert self_loops(nsa_selected)
assert causal & (sinks(64) | blocks(64, 1, 0)) <= nsa_selected
assert causal & window(512) <= nsa

# Packed sequences of several documents.
pattern packed = causal & document(ids)
assert causal(packed)
assert self_loops(packed)

# The expression of the README.
pattern flagship = causal & (window(4096) | global([0]) | stride(64) | random(3) | topk(indexer, 2048))
assert causal(flagship)
assert self_loops(flagship)
assert hops(flagship) <= 2
