"""Any vision-language model of transformers, behind the engine's and the job's own interfaces."""
