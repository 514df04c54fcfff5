"""Fields and focal stacks on disk, and the random patches that training draws from them."""
