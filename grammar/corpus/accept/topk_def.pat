def pick(s, count, who=group, first=self) = topk(s, count, share=who, force=first)
causal & (pick(exact, 4) | pick(indexer, 4, query, sinks(2)))
